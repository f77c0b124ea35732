"""Take the screenshot docs/lineage.png of all pipelines: ``kedro lineage && python -m docs.lineage``."""

from pathlib import Path

from tests.browser import go_to_lineage, open_page, serving

SITE, PICTURE = Path("build/lineage"), Path("docs/lineage.png")
#: The bounding box of all nodes and layer names, with a margin, in pixels.
BOX = """() => {
    const elements = [...document.querySelectorAll(".pipeline-node, .pipeline-layer-name")]
    const boxes = elements.map(element => element.getBoundingClientRect())
    const x = Math.min(...boxes.map(box => box.left)) - 20, y = Math.min(...boxes.map(box => box.top)) - 20
    const right = Math.max(...boxes.map(box => box.right)), bottom = Math.max(...boxes.map(box => box.bottom))
    return {x, y, width: right + 20 - x, height: bottom + 20 - y}
}"""

if __name__ == "__main__":
    with serving(SITE) as address, open_page(2000, 2400) as (page, _):
        go_to_lineage(page, address)
        page.screenshot(path=PICTURE, clip=page.evaluate(BOX))
