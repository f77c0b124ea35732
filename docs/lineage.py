"""Takes docs/lineage.png, the picture of the whole method: ``kedro lineage && python -m docs.lineage``."""

from pathlib import Path

from tests.browser import go_to_lineage, open_page, serving

SITE, PICTURE = Path("build/lineage"), Path("docs/lineage.png")
#: The box around all nodes and names of layers, with a margin, in pixels of the window.
BOX = """() => {
    const things = [...document.querySelectorAll(".pipeline-node, .pipeline-layer-name")]
    const boxes = things.map(thing => thing.getBoundingClientRect())
    const x = Math.min(...boxes.map(box => box.left)) - 20, y = Math.min(...boxes.map(box => box.top)) - 20
    const right = Math.max(...boxes.map(box => box.right)), bottom = Math.max(...boxes.map(box => box.bottom))
    return {x, y, width: right + 20 - x, height: bottom + 20 - y}
}"""

if __name__ == "__main__":
    with serving(SITE) as address, open_page(2000, 2400) as (page, _):
        go_to_lineage(page, address)
        page.screenshot(path=PICTURE, clip=page.evaluate(BOX))
