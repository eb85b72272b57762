// The picture with its marks. `element`, `props` and `watch` are gradio's; props.value is what the server reads.
const stage = element.querySelector(".stage"), canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
const picture = new Image();
let tool = "point", hand = null;   // hand: the mark that is being drawn

const marks = () => props.value?.marks ?? [];
const put = (next) => { props.value = { ...props.value, marks: next }; draw(); };

function place(event) {
  const { width, height } = props.value, seen = canvas.getBoundingClientRect();
  const within = (value, most) => Math.round(Math.min(Math.max(value, 0), most) * 10) / 10;
  const end = tool === "box" ? 0 : 1;   // a box may end at the edge, a point lies in a pixel
  return [within((event.clientX - seen.left) / seen.width * width, width - end),
          within((event.clientY - seen.top) / seen.height * height, height - end)];
}

function finished({ kind, xy }) {
  if (kind === "point") return { kind, xy: xy.slice(0, 2).map(Math.floor) };
  if (kind !== "box") return xy.length >= (kind === "mask" ? 6 : 4) ? { kind, xy } : null;
  const [a, b] = [xy.slice(0, 2), xy.slice(-2)];
  const low = a.map((value, i) => Math.floor(Math.min(value, b[i])));
  const high = a.map((value, i) => Math.ceil(Math.max(value, b[i])));
  return high[0] - low[0] > 1 && high[1] - low[1] > 1 ? { kind, xy: [...low, ...high] } : null;
}

function trace({ kind, xy }, scale) {
  pen.beginPath();
  if (kind === "point") pen.arc((xy[0] + 0.5) * scale, (xy[1] + 0.5) * scale, 5 * devicePixelRatio, 0, 7);
  else if (kind === "box") pen.rect(xy[0] * scale, xy[1] * scale, (xy.at(-2) - xy[0]) * scale, (xy.at(-1) - xy[1]) * scale);
  else for (let i = 0; i < xy.length; i += 2) pen.lineTo(xy[i] * scale, xy[i + 1] * scale);
  if (kind === "mask") pen.closePath();
}

function label(number, { kind, xy }, scale) {
  const size = 12 * devicePixelRatio, word = "Prompt" + number;
  pen.font = "600 " + size + "px system-ui, sans-serif";
  const wide = pen.measureText(word).width + size, high = size * 1.5;
  const x = Math.min(Math.max(xy[0] * scale, 0), canvas.width - wide);
  const y = Math.max(xy[1] * scale - high - (kind === "point" ? size * 0.8 : 0), 0);
  pen.beginPath();
  pen.roundRect(x, y, wide, high, high / 2);
  pen.fillStyle = "#ffc814";
  pen.fill();
  pen.fillStyle = "#101218";
  pen.fillText(word, x + size / 2, y + size * 1.12);
}

function draw() {
  const open = Boolean(props.value?.picture) && picture.complete && picture.naturalWidth > 0;
  stage.classList.toggle("open", open);
  if (!open) return;
  const { width, height } = props.value;
  const across = Math.min(stage.clientWidth, 0.65 * innerHeight * width / height);
  canvas.style.width = across + "px";
  canvas.width = Math.round(across * devicePixelRatio);
  canvas.height = Math.round(canvas.width * height / width);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const scale = canvas.width / width, thin = 2 * devicePixelRatio;
  pen.lineJoin = pen.lineCap = "round";
  [...marks(), ...(hand ? [hand] : [])].forEach((mark, number) => {
    trace(mark, scale);
    pen.fillStyle = mark.kind === "point" ? "#ffc814" : "#ffc81440";
    if (mark.kind !== "scribble") pen.fill();
    for (const [style, line] of [["#101218", 2 * thin], ["#ffc814", thin]]) {
      pen.strokeStyle = mark.kind === "point" && line === thin ? "#ffffff" : style;
      pen.lineWidth = line;
      pen.stroke();
    }
    label(number, mark, scale);
  });
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  hand = { kind: tool, xy: place(event) };
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!hand) return;
  hand.xy = tool === "scribble" || tool === "mask" ? [...hand.xy, ...place(event)] : [...hand.xy.slice(0, 2), ...place(event)];
  draw();
});
canvas.addEventListener("pointerup", () => {
  const mark = hand && finished(hand);
  hand = null;
  mark ? put([...marks(), mark]) : draw();
});
canvas.addEventListener("pointercancel", () => { hand = null; draw(); });

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.tool) {
    tool = button.dataset.tool;
    element.querySelectorAll("[data-tool]").forEach((each) => each.classList.toggle("on", each === button));
  } else if (button && props.value) {
    put(button.dataset.do === "undo" ? marks().slice(0, -1) : []);
  }
});

picture.addEventListener("load", draw);
addEventListener("resize", draw);
watch("value", () => {
  if (props.value?.picture && picture.src !== props.value.picture) picture.src = props.value.picture;
  draw();
});
