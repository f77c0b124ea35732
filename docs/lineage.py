"""Take the screenshot docs/lineage.png of the default view: ``kedro lineage && python -m docs.lineage``."""

import json
from pathlib import Path

from tests.browser import go_to_lineage, open_page, serving

SITE, PICTURE = Path("build/lineage"), Path("docs/lineage.png")
#: Without the sidebar and the minimap, in light colors: the picture is of the graph.
VISITOR = {"theme": "light", "showFeatureHints": False, "visible": {"sidebar": False, "miniMap": False}}
#: The bounding box of all nodes, with a margin, in pixels.
BOX = """() => {
    const boxes = [...document.querySelectorAll(".pipeline-node")].map(element => element.getBoundingClientRect())
    const x = Math.min(...boxes.map(box => box.left)) - 20, y = Math.min(...boxes.map(box => box.top)) - 20
    const right = Math.max(...boxes.map(box => box.right)), bottom = Math.max(...boxes.map(box => box.bottom))
    return {x, y, width: right + 20 - x, height: bottom + 20 - y}
}"""

if __name__ == "__main__":
    with serving(SITE) as address, open_page(1440, 900, device_scale_factor=2) as (page, _):
        page.add_init_script(f"localStorage.setItem('KedroViz', {json.dumps(json.dumps(VISITOR))})")
        go_to_lineage(page, address)
        page.screenshot(path=PICTURE, clip=page.evaluate(BOX))
