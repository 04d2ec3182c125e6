"""A zone for files and folders: they are dropped there, or chosen, and keep their relative names.

Gradio's own component for files sends the names of files without their folders, and nothing at all
if a folder is dropped. Here the page itself reads the folders, sends file by file through Gradio's
upload, and remembers the name of each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from dataset.captions.rules import CAPTION_FILES
from dataset.editing.new_folder import TAKEN
from foundation.errors import UserError
from foundation.json_reading import from_json

MOST_BYTES = 1024 * 2**20  # of all files
MOST_FILES = 20_000
AT_ONCE = 4  # files that are being sent

TEMPLATE = """
<div class="drop-zone" role="group" aria-label="Images and captions">
  <div>Drop images, or a folder with images and captions, here</div>
  <div class="drop-buttons">
    <button type="button" class="drop-files">Choose files</button>
    <button type="button" class="drop-folder">Choose a folder</button>
    <button type="button" class="drop-clear" hidden>Clear</button>
  </div>
  <div class="drop-said" role="status" aria-live="polite"></div>
  <input type="file" class="drop-input-files" aria-label="Files" multiple hidden>
  <input type="file" class="drop-input-folder" aria-label="Folder" webkitdirectory hidden>
</div>
"""
STYLE = """
.drop-zone { border: 2px dashed var(--border-color-primary); border-radius: 8px; padding: 14px;
             text-align: center; }
.drop-zone.over { border-color: var(--color-accent); background: var(--color-accent-soft); }
.drop-buttons { display: flex; flex-wrap: wrap; gap: 8px; justify-content: center;
                margin: 10px 0 4px; }
.drop-buttons button { padding: 4px 12px; margin: 0; border-radius: var(--button-small-radius);
                       font-size: 14px; font-weight: 500;
                       border: 1px solid var(--border-color-primary);
                       background: var(--button-secondary-background-fill); cursor: pointer;
                       color: var(--button-secondary-text-color); }
.drop-buttons button[hidden] { display: none; }
.drop-said { font-size: 0.9em; overflow-wrap: anywhere; min-height: 1.4em; }
"""
# A folder that is dropped is read entry by entry; readEntries gives at most a hundred at a time.
SCRIPT = """
const settings = SETTINGS;
const find = name => element.querySelector('.' + name);
const zone = find('drop-zone');
const inputs = [find('drop-input-files'), find('drop-input-folder')];
const say = text => { find('drop-said').textContent = text; };
let sent = [], left = [], isBusy = false;

const isTaken = path => {
  const parts = path.split('/'), name = parts[parts.length - 1];
  return !parts.some(part => part.startsWith('.')) && (settings.names.includes(name)
    || settings.endings.some(ending => name.toLowerCase().endsWith(ending)));
};

const describe = () => {
  const folders = new Set(sent.map(each => each.name.split('/').slice(0, -1).join('/')));
  const size = sent.reduce((sum, each) => sum + each.size, 0) / 2 ** 20;
  const names = left.slice(0, 3).join(', ') + (left.length > 3 ? ', ...' : '');
  const inside = folders.has('') ? '' : ` in ${folders.size} folder${folders.size > 1 ? 's' : ''}`;
  say(`${sent.length} file${sent.length === 1 ? '' : 's'}${inside}, ${size.toFixed(1)} MiB.`
    + (left.length ? ` ${left.length} left out, of other kinds or hidden: ${names}.` : ''));
  find('drop-clear').hidden = !sent.length && !left.length;
};

async function collect(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((done, fail) => entry.file(done, fail));
    found.push([entry.fullPath.replace(/^[/]/, ''), file]);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return;
    for (const each of some) await collect(each, found);
    if (found.length > settings.most_files) return;
  }
}

async function take(found) {
  const files = found.filter(([path]) => isTaken(path));
  const bytes = [...sent, ...files.map(([, file]) => file)].reduce((sum, x) => sum + x.size, 0);
  if (sent.length + files.length > settings.most_files)
    return say(`More than ${settings.most_files} files are not taken. Put them into a folder of `
      + 'the server.');
  if (bytes > settings.most_bytes)
    return say(`${(bytes / 2 ** 20).toFixed(0)} MiB are too much: at most `
      + `${settings.most_bytes / 2 ** 20} MiB are taken. Put them into a folder of the server.`);
  left = left.concat(found.filter(([path]) => !isTaken(path)).map(([path]) => path));
  const queue = files.entries(), arrived = new Array(files.length);
  let done = 0;
  async function send() {
    for (const [k, [path, file]] of queue) {
      const answer = await upload(file);
      arrived[k] = { name: path, path: answer.path, size: file.size };
      done += 1;
      say(`${done} of ${files.length} files have arrived.`);
    }
  }
  await Promise.all(Array.from({ length: settings.at_once }, send));
  sent = sent.concat(arrived);
  props.value = { files: sent.map(({ name, path }) => ({ name, path })) };
  describe();
  trigger('upload');
}

async function begin(reading) {
  if (isBusy) return say('Wait until the files before have arrived.');
  isBusy = true;
  try { await take(await reading); }
  catch (error) { say(`They could not be sent: ${error.message || error}`); }
  finally { isBusy = false; }
}

zone.addEventListener('dragover', event => { event.preventDefault(); zone.classList.add('over'); });
zone.addEventListener('dragleave', () => zone.classList.remove('over'));
zone.addEventListener('drop', event => {
  event.preventDefault();
  zone.classList.remove('over');
  const items = [...event.dataTransfer.items].filter(item => item.kind === 'file');
  const entries = items.map(item => item.webkitGetAsEntry() || item.getAsFile());
  const found = [];
  begin((async () => {
    for (const entry of entries.filter(Boolean))
      if (entry instanceof File) found.push([entry.name, entry]);
      else await collect(entry, found);
    return found;
  })());
});
find('drop-files').addEventListener('click', () => inputs[0].click());
find('drop-folder').addEventListener('click', () => inputs[1].click());
for (const input of inputs)
  input.addEventListener('change', () => {
    const found = [...input.files].map(file => [file.webkitRelativePath || file.name, file]);
    input.value = '';
    if (found.length) begin(found);
  });
const clear = () => { sent = []; left = []; describe(); say(''); };
find('drop-clear').addEventListener('click', () => { props.value = null; clear(); });
watch('value', () => { if (!props.value) clear(); });
"""


@dataclass(frozen=True)
class SentFile:
    """A file that the page has sent. name: as the user had it, with folders; path: on the server"""

    name: str
    path: str


@dataclass(frozen=True)
class DropZoneValue:
    """The value of the zone."""

    files: tuple[SentFile, ...] = ()


def make_drop_zone() -> gr.HTML:
    """Make the zone where the page is being made. Its value is for `read_dropped`."""
    settings = {
        "names": CAPTION_FILES,
        "endings": TAKEN,
        "most_files": MOST_FILES,
        "most_bytes": MOST_BYTES,
        "at_once": AT_ONCE,
    }
    return gr.HTML(
        None,
        html_template=TEMPLATE,
        css_template=STYLE,
        js_on_load=SCRIPT.replace("SETTINGS", json.dumps(settings)),
        elem_id="dropped",
    )


def read_dropped(value: object) -> Sequence[tuple[str, Path]]:
    """Return the files that the zone has, as (name with folders, where the server keeps it).

    Raises:
        UserError: there are none or too many, or a path is none that this server gave to an upload.
    """
    value = value or {}
    if not isinstance(value, Mapping):
        raise UserError("the files of the page have another form. Load the page again.")
    files = from_json(DropZoneValue, value, "the list of files").files
    if not files:
        raise UserError("no files are dropped. Drop images or a folder first.")
    if len(files) > MOST_FILES:
        raise UserError(f"{len(files):,} files are dropped, and at most {MOST_FILES:,} are taken.")
    inside = Path(get_upload_folder()).resolve()
    for file in files:
        if not is_upload(file.path, inside):
            raise UserError("a file is none that was sent to this server. Drop the files again.")
    return [(file.name, Path(file.path)) for file in files]


def is_upload(path: str, folder: Path) -> bool:
    """Return whether a path is a file in the folder of uploads, and no link that leads out."""
    try:
        real = Path(path).resolve()
        return Path(path).is_absolute() and real.is_relative_to(folder) and real.is_file()
    except (OSError, ValueError):  # a name that is too long, or with a zero byte
        return False
