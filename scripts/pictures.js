/* Opens every picture in headless Chromium, at two widths, and tries what a reader would.

    cargo run --release --example pictures -- FOLDER
    npm install playwright-core
    node scripts/pictures.js FOLDER [SCREENSHOTS]

Every .html and .svg below FOLDER is opened at 390 and at 1280 pixels. Checked of each: nothing runs over the page's width, no
error in the console, no request but for the file itself, no dialog. Of texts: the text is shown as it is, and a token's
note has what it must, under the pointer and under every key. Of maps of heads: each key moves as the ARIA grid pattern says,
and a head chosen changes the text's notes. Faults are printed, and the exit status is 1 when there is one. With
SCREENSHOTS a picture of each page is left in that folder.

Needs Node and Chromium; CHROMIUM names another than /usr/bin/chromium.
*/
const fs = require('fs');
const path = require('path');
const { pathToFileURL } = require('url');
const { chromium } = require('playwright-core');

const WIDTHS = [390, 1280];
const [folder, shots] = process.argv.slice(2);
if (!folder) {
  console.error('usage: node scripts/pictures.js FOLDER [SCREENSHOTS]');
  process.exit(2);
}
const expected = JSON.parse(fs.readFileSync(path.join(folder, 'expected.json'), 'utf8'));
const files = fs
  .readdirSync(folder, { recursive: true })
  .filter(name => /\.(html|svg)$/.test(name))
  .sort();

const faults = [];
const counts = { opened: 0, notes: 0, keys: 0, texts: 0 };

/* What a note must say, by kind of picture. */
const HEAD = '^\u201c[^]*\u201d\\ntoken \\d+(, rank \\d+ of \\d+)?';
const NUMBER = '[-\u2212+]?\\d[\\d.e-]*';
const NOTES = {
  text: new RegExp(`${HEAD}\\nlarge ${NUMBER}, small ${NUMBER}\\ndifference ${NUMBER}\\ndropped with p = 0\\.\\d{3}`),
  attention: new RegExp(`${HEAD}\\nreceived ${NUMBER}`),
  heads: new RegExp(`${HEAD}(\\nweight ${NUMBER}|, after the probe)`),
  'heads-signed': new RegExp(`${HEAD}(\\nlarge ${NUMBER}, small ${NUMBER}\\ndifference ${NUMBER}|, after the probe)`),
  plan: new RegExp(`${HEAD}\\ndropped with p = 0\\.\\d{3}`),
};
/* Any picture's: on a page of several. */
NOTES.report = new RegExp(`${HEAD}(\\nlarge|\\ndropped)`);

const kindOf = name => Object.keys(NOTES).filter(kind => name.replace('.html', '').endsWith(kind)).sort((a, b) => b.length - a.length)[0];

async function open(browser, name, width) {
  const page = await browser.newPage({ viewport: { width, height: 900 } });
  const fault = what => faults.push(`${name} at ${width}: ${what}`);
  const url = pathToFileURL(path.resolve(folder, name)).href;
  page.on('console', message => message.type() === 'error' && fault(`console: ${message.text()}`));
  page.on('pageerror', error => fault(`script: ${error.message}`));
  page.on('dialog', dialog => { fault(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on('request', request => request.url() !== url && fault(`request: ${request.url()}`));
  await page.goto(url);
  counts.opened++;
  if (name.endsWith('.html')) {
    const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (over > 0) fault(`${over} pixels wider than the window`);
    await texts(page, name, fault);
    await tokens(page, name, fault);
    await heads(page, fault);
    const after = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (after > 0) fault(`${after} pixels wider than the window after use`);
  }
  if (shots) {
    await page.evaluate(() => scrollTo(0, 0));
    const file = path.join(shots, `${name.replace(/[^\w.-]/g, '_')}-${width}.png`);
    await page.screenshot({ path: file });
  }
  await page.close();
}

/* The texts are shown as text; a control character is replaced, as HTML has no place for it. */
async function texts(page, name, fault) {
  const shown = await page.$$eval('.tx[role=listbox]', boxes => boxes.map(box => box.textContent));
  const want = (expected[name] || { texts: [] }).texts.map(text => text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, '\ufffd'));
  want.forEach((text, n) => {
    counts.texts++;
    if (shown[n] !== text) fault(`text ${n} is not shown as it is: ${JSON.stringify((shown[n] || '').slice(0, 60))}`);
  });
}

/* Each listbox: notes under the pointer and under the keys. */
async function tokens(page, name, fault) {
  const must = NOTES[kindOf(name)];
  const boxes = await page.$$('.tx[role=listbox]');
  if (must && !boxes.length) fault('no text that the keyboard can reach');
  for (const box of boxes.slice(0, 6)) {
    if (!(await box.isVisible())) {
      const summary = await box.evaluateHandle(e => e.closest('details').querySelector('summary'));
      await summary.asElement().click();
    }
    const note = () => page.evaluate(() => [...document.querySelectorAll('.tip')].filter(t => !t.hidden).map(t => t.textContent).join('|'));
    const judge = (text, how) => {
      counts.notes++;
      if (!text || !must.test(text)) fault(`note ${how}: ${JSON.stringify((text || '').slice(0, 160))}`);
    };
    // A handle for each of 50,000 tokens would be too many.
    const count = await box.evaluate(e => e.querySelectorAll('.t').length);
    if (!count) { fault('a text without tokens'); continue; }
    const last = count - 1;
    for (const at of [0, count >> 1, last]) {
      const token = (await box.evaluateHandle((e, at) => e.querySelectorAll('.t')[at], at)).asElement();
      await token.scrollIntoViewIfNeeded();
      const where = await token.evaluate(t => {
        const r = t.getClientRects()[0];
        const hit = (x, y) => document.elementFromPoint(x, y) && document.elementFromPoint(x, y).closest('.t') === t && [x, y];
        return hit(r.x + r.width / 2, r.y + r.height / 2) || hit(r.x + 1, r.y + r.height / 2);
      });
      // A token of combining marks alone has no room of its own.
      if (!where) continue;
      await page.mouse.move(0, 0);
      await page.mouse.move(...where);
      judge(await note(), 'under the pointer');
      const inside = await page.evaluate(() => {
        const r = [...document.querySelectorAll('.tip')].find(t => !t.hidden)?.getBoundingClientRect();
        return !r || (r.left >= 0 && r.right <= innerWidth && r.top >= 0 && r.bottom <= innerHeight);
      });
      if (!inside) fault('a note outside the window');
    }
    await page.mouse.move(0, 0);
    // The keyboard reaches the text: focus as Tab gives it.
    await box.focus();
    await page.keyboard.press('Home');
    const active = () => box.evaluate(e => {
      const t = document.getElementById(e.getAttribute('aria-activedescendant'));
      return t ? { at: [...e.querySelectorAll('.t')].indexOf(t), rank: t.dataset.r, selected: t.getAttribute('aria-selected'), role: t.getAttribute('role'), label: t.getAttribute('aria-label') } : null;
    });
    const press = async (key, right) => {
      const started = Date.now();
      await page.keyboard.press(key);
      const now = await active();
      counts.keys++;
      if (Date.now() - started > 1500) fault(`${key} takes ${Date.now() - started} ms`);
      if (!now || now.selected !== 'true' || now.role !== 'option') return fault(`${key}: no entry is active`);
      if (!right(now)) fault(`${key} leads to entry ${now.at} of ${last}, rank ${now.rank}`);
      judge(now.label, `of ${key}`);
    };
    await press('Home', now => now.at === 0);
    await press('ArrowRight', now => now.at === Math.min(1, last));
    await press('ArrowLeft', now => now.at === 0);
    await press('End', now => now.at === last);
    const ranks = await box.$$eval('.t', all => all.map(t => (t.dataset.r ? +t.dataset.r : Infinity)));
    if (ranks.some(r => r !== Infinity)) {
      const first = ranks.indexOf(Math.min(...ranks));
      await page.keyboard.press('Home');
      if (count < 300) {
        for (let i = 0; i < count; i++) await page.keyboard.press('ArrowUp');
        await press('ArrowUp', now => now.at === first);
      }
      await press('ArrowDown', now => +now.rank >= 0);
    }
    await page.keyboard.press('Escape');
    if (await note()) fault('Escape leaves the note');
  }
}

/* Each map of heads: the keys of the ARIA grid pattern, and that a choice changes the text. */
async function heads(page, fault) {
  for (const picture of await page.$$('.cs-heads')) {
    const grids = await picture.$$('[role=grid]');
    for (const grid of grids) {
      const stops = await grid.$$eval('[tabindex="0"]', found => found.length);
      if (stops !== 1) fault(`${stops} tab stops in a grid`);
      const size = await grid.evaluate(g => [g.querySelectorAll('[role=row]').length - 1, +g.dataset.heads]);
      const at = () => grid.evaluate(g => [...g.querySelectorAll('[role=gridcell]')].indexOf(document.activeElement));
      await (await grid.$('[role=gridcell]')).click();
      const end = size[0] * size[1] - 1;
      for (const [key, want] of [['Home', 0], ['ArrowLeft', 0], ['ArrowRight', Math.min(1, size[1] - 1)], ['End', size[1] - 1],
        ['ArrowRight', size[1] - 1], ['ArrowDown', size[0] > 1 ? 2 * size[1] - 1 : size[1] - 1], ['Control+End', end], ['ArrowDown', end], ['Control+Home', 0]]) {
        await page.keyboard.press(key);
        counts.keys++;
        const found = await at();
        if (found !== want) fault(`${key} in a map leads to ${found}, not ${want}`);
        const label = await page.evaluate(() => document.activeElement.getAttribute('aria-label') || '');
        if (!/^layer \d+, head \d+/.test(label)) fault(`a head is called ${JSON.stringify(label)}`);
      }
      const notes = () => picture.$$eval('.tx .t', all => all.map(t => t.dataset.note).join());
      const before = await notes();
      if (end > 0) {
        await page.keyboard.press('Control+End');
        if ((await notes()) === before) fault('another head leaves the text as it is');
      }
    }
    const chosen = await picture.$$eval('[aria-selected=true][role=gridcell]', found => found.length);
    if (chosen !== 1) fault(`${chosen} heads chosen`);
    const views = await picture.$$eval('option', all => all.filter(o => o.parentNode.tagName === 'SELECT').map(o => o.index));
    for (const index of views) await (await picture.$('select')).selectOption({ index });
  }
}

(async () => {
  if (shots) fs.mkdirSync(shots, { recursive: true });
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu'] });
  for (const name of files) for (const width of WIDTHS) {
    await open(browser, name, width).catch(error => faults.push(`${name} at ${width}: ${error.message.split('\n')[0]}`));
  }
  console.log(`Chromium ${browser.version()}: ${files.length} files at ${WIDTHS.join(' and ')} pixels, ${counts.opened} opened, ` +
    `${counts.texts} texts compared, ${counts.notes} notes and ${counts.keys} keys tried, ${faults.length} faults`);
  for (const fault of faults) console.log(fault);
  await browser.close();
  process.exit(faults.length ? 1 : 0);
})();
