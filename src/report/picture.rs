//! What all pictures of texts share: colours, the words of a token's note, the page around a picture.

use std::collections::BTreeSet;

use super::html::escape;
use crate::text::hidden;

/// Colours by role, for light and dark surroundings. Orange against blue can be told apart with every
/// common colour blindness; both keep a contrast of at least 4.5 to the text on them.
pub(super) const STYLE: &str = "
.cs{--bg:#fff;--fg:#1b1f24;--soft:#5b6470;--line:#c9ced6;--pos:#f09a3e;--neg:#5fa8dc;--tip:#fff;color:var(--fg);background:var(--bg);
font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;max-width:60rem;margin:0 auto;padding:.75rem 1rem;color-scheme:light}
@media(prefers-color-scheme:dark){.cs{--bg:#15181c;--fg:#e9ebee;--soft:#a3abb6;--line:#3d444d;--pos:#96500a;--neg:#1f5f9e;--tip:#22272e;color-scheme:dark}}
[data-jp-theme-light=true] .cs{--bg:#fff;--fg:#1b1f24;--soft:#5b6470;--line:#c9ced6;--pos:#f09a3e;--neg:#5fa8dc;--tip:#fff;color-scheme:light}
[data-jp-theme-light=false] .cs{--bg:#15181c;--fg:#e9ebee;--soft:#a3abb6;--line:#3d444d;--pos:#96500a;--neg:#1f5f9e;--tip:#22272e;color-scheme:dark}
.cs *{box-sizing:border-box}
.cs h2{font-size:1.1rem;line-height:1.3;margin:0 0 .25rem;overflow-wrap:anywhere}
.cs p,.cs footer{margin:.25rem 0;color:var(--soft);font-size:.85rem;overflow-wrap:anywhere}
.cs .scale{display:flex;flex-wrap:wrap;gap:.25rem .6rem;align-items:center;margin:.4rem 0;font-size:.85rem}
.cs .bar{width:9rem;height:.9rem;border:1px solid var(--line);font-size:.7rem;line-height:.8rem;text-align:center}
.cs details{border-top:1px solid var(--line);padding:.35rem 0}
.cs summary{cursor:pointer;overflow-wrap:anywhere}
.cs .tx{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;line-height:1.9;margin:.35rem 0;padding:.25rem;border:1px solid transparent;border-radius:3px;tab-size:4}
.cs .tx:focus-visible{outline:2px solid var(--fg)}
.cs .tx .t{font-weight:inherit;font-style:inherit;padding:.15em 0;color:inherit!important;background:color-mix(in srgb,var(--c) calc(var(--w)*1%),transparent)!important;unicode-bidi:normal}
.cs .bare{display:none}
.cs .p{--c:var(--pos);border-bottom:2px solid color-mix(in srgb,var(--fg) calc(var(--w)*.6%),transparent)}
.cs .n{--c:var(--neg)}
.cs .tx .on{outline:2px solid var(--fg);outline-offset:-1px}
.cs .scroll{overflow-x:auto;margin:.4rem 0}
.cs .scroll svg{min-width:36rem}
.cs table{border-collapse:collapse;font-size:.85rem}
.cs caption{text-align:left;color:var(--soft)}
.cs th,.cs td{padding:.15rem .6rem;border-bottom:1px solid var(--line);text-align:left;font-weight:normal}
.cs thead th{font-weight:600}
.cs td.n,.cs th.n{text-align:right}
.cs .tip{position:fixed;z-index:9;left:0;top:0;max-width:min(24rem,92vw);padding:.4rem .6rem;background:var(--tip);color:var(--fg);border:1px solid var(--soft);border-radius:4px;
box-shadow:0 2px 8px #0005;font-size:.85rem;line-height:1.45;white-space:pre-line;overflow-wrap:anywhere;pointer-events:none}
.cs .tip[hidden]{display:none}
";

/// What stands below a picture where styles were taken away, as JupyterLab does in a notebook that was neither run nor trusted.
pub(super) const BARE: &str = "<p class=\"bare\">Where no colours are shown, bold stands for orange and italic for blue. Colours that follow the theme, notes and keys \
need a notebook that was run or is trusted.</p>\n";

/// Notes beside the pointer and the keyboard's token. A note without this script is the browser's own
/// tooltip. Every picture on a page is set up once, and a token when its note is first shown: a text may have 100,000.
/// JupyterLab moves its cells, and what is fixed moves with them: a note is put where it belongs by how far it landed off.
pub(super) const SCRIPT: &str = r#"
(()=>{for(const root of document.querySelectorAll('.cs:not([data-ready])')){root.dataset.ready='1';
const tip=document.createElement('div');tip.className='tip';tip.hidden=true;root.append(tip);
let on=null;
const put=(x,y)=>{tip.style.left=x+'px';tip.style.top=y+'px'};
const hide=()=>{tip.hidden=true;if(on){on.classList.remove('on');on.removeAttribute('aria-selected');on=null}};
let count=0;
const prepare=t=>{if(t.title){t.dataset.note=t.title;t.setAttribute('aria-label',t.title);t.removeAttribute('title')}t.id=t.id||'cs'+Math.random().toString(36).slice(2)+count++};
const show=t=>{hide();prepare(t);on=t;t.classList.add('on');t.setAttribute('aria-selected','true');tip.textContent=t.dataset.note;tip.hidden=false;
const r=t.getClientRects()[0]||t.getBoundingClientRect(),b=tip.getBoundingClientRect();
let x=Math.max(4,Math.min(r.left,innerWidth-b.width-8)),y=r.bottom+6;if(y+b.height>innerHeight)y=Math.max(0,r.top-b.height-6);
put(x,y);const at=tip.getBoundingClientRect();put(2*x-at.left,2*y-at.top)};
for(const box of root.querySelectorAll('.tx')){
let list=null;const tokens=()=>list||(list=[...box.querySelectorAll('.t')]);
const go=t=>{if(!t)return;t.scrollIntoView({block:'nearest'});show(t);box.setAttribute('aria-activedescendant',t.id)};
box.addEventListener('pointerover',e=>{const t=e.target.closest('.t');if(t)show(t)});
box.addEventListener('pointerleave',hide);box.addEventListener('blur',hide);
box.addEventListener('focus',()=>{if(box.matches(':focus-visible'))go(on&&box.contains(on)?on:tokens()[0])});
box.addEventListener('keydown',e=>{const all=tokens(),at=on?all.indexOf(on):-1;let to=null;
const byRank=step=>{const order=all.map(t=>[t.dataset.r?+t.dataset.r:1e9,t]).sort((a,b)=>a[0]-b[0]).map(p=>p[1]);return order[Math.max(0,Math.min(order.length-1,on?order.indexOf(on)+step:0))]};
if(e.key==='ArrowRight')to=all[Math.min(all.length-1,at+1)];else if(e.key==='ArrowLeft')to=all[Math.max(0,at-1)];
else if(e.key==='ArrowDown')to=byRank(1);else if(e.key==='ArrowUp')to=byRank(-1);
else if(e.key==='Home')to=all[0];else if(e.key==='End')to=all[all.length-1];else if(e.key==='Escape')return hide();else return;
e.preventDefault();go(to)})}
addEventListener('scroll',()=>{if(on&&!root.contains(document.activeElement))hide()},{capture:true,passive:true})}})();
"#;

/// The scale from blue over nothing at 0 to orange.
pub(super) fn signed_bar() -> String {
    "<span class=\"bar\" role=\"img\" aria-label=\"blue, pale at 0, orange\" style=\"background:linear-gradient(90deg,var(--neg),transparent,var(--pos))\">0</span>".into()
}

/// `svg`, the figure of a file, with the line that says where it came from.
pub(super) fn stamped(svg: &str, footer: &str) -> String {
    svg.replacen('>', &format!(">\n<metadata>{}</metadata>", escape(footer)), 1)
}

/// `field` as part of a file name that no other of `used` has, capitals ignored.
pub(super) fn unused_file_name(field: &str, used: &mut BTreeSet<String>) -> String {
    let plain: String =
        field.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let mut name = plain.clone();
    for number in 2.. {
        if used.insert(name.to_lowercase()) {
            break;
        }
        name = format!("{plain}-{number}");
    }
    name
}

/// `fragment` as a page of its own.
pub(super) fn page(title: &str, fragment: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <title>{}</title>\n\
         <style>body{{margin:0;background:#fff}}@media(prefers-color-scheme:dark){{body{{background:#15181c}}}}</style>\n\
         </head>\n<body>\n{fragment}\n</body>\n</html>\n",
        escape(title)
    )
}

/// A token's text with every character visible: blanks, line breaks, controls and what changes the
/// direction of writing.
pub(super) fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            ' ' => out.push('\u{2423}'),
            '\n' => out.push('\u{23ce}'),
            '\t' => out.push('\u{21e5}'),
            c if hidden(c) => out.push_str(&format!("[U+{:04X}]", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// A model's name for a title: the last part of a path, without `.gguf`. Provenance keeps the whole.
pub(super) fn title_name(name: &str) -> &str {
    let last = name.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or(name);
    last.strip_suffix(".gguf").unwrap_or(last)
}

/// Three significant digits, without an exponent unless the number is tiny.
pub(super) fn short(value: f32) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".into()
    } else if size < 1e-4 {
        format!("{value:.2e}")
    } else {
        let digits = (2 - size.log10().floor() as i32).max(0) as usize;
        format!("{value:.digits$}")
    }
}

/// [`short`] with a sign.
pub(super) fn signed(value: f32) -> String {
    let text = short(value.abs());
    match value {
        v if v > 0.0 => format!("+{text}"),
        v if v < 0.0 => format!("\u{2212}{text}"),
        _ => text,
    }
}

/// The value at full colour: 19 of 20 values of `sizes` lie at or below it, so that one token which
/// absorbs everything does not bleach the rest.
pub(super) fn full_colour(mut sizes: Vec<f32>) -> f32 {
    sizes.retain(|s| s.is_finite());
    sizes.sort_by(f32::total_cmp);
    let at = (sizes.len() as f64 * 0.95).ceil() as usize;
    let found = sizes.get(at.saturating_sub(1)).copied().unwrap_or(0.0);
    let largest = sizes.last().copied().unwrap_or(0.0);
    match (found > 0.0, largest > 0.0) {
        (true, _) => found,
        (false, true) => largest,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_honest() {
        let cases = [(0.0, "0"), (0.012345, "0.0123"), (-0.5, "-0.500"), (1234.6, "1235"), (2e-7, "2.00e-7")];
        for (value, want) in cases {
            assert_eq!(short(value), want);
        }
        assert_eq!(signed(0.25), "+0.250");
        assert_eq!(signed(-0.25), "\u{2212}0.250");
    }

    #[test]
    fn nothing_invisible_stays_invisible() {
        assert_eq!(visible(" a\n\t\u{202e}\u{7}e\u{301}"), "␣a⏎⇥[U+202E][U+0007]e\u{301}");
    }

    #[test]
    fn no_two_fields_share_a_file() {
        let mut used = BTreeSet::new();
        let names = ["a b", "a-b", "A/B", "name"].map(|field| unused_file_name(field, &mut used));
        assert_eq!(names, ["a-b", "a-b-2", "A-B-3", "name"]);
    }

    #[test]
    fn titles_name_the_file_and_not_its_folders() {
        for (name, want) in
            [("/a/b.c/m-1.5b.gguf", "m-1.5b"), ("owner/model", "model"), ("m/", "m"), ("nano", "nano")]
        {
            assert_eq!(title_name(name), want);
        }
    }

    #[test]
    fn one_outlier_does_not_decide_the_scale() {
        let mut sizes = vec![0.01; 99];
        sizes.push(5.0);
        assert_eq!(full_colour(sizes), 0.01);
        assert_eq!(full_colour(vec![0.0; 99]), 1.0);
        let mut sparse = vec![0.0; 99];
        sparse.push(2.0);
        assert_eq!(full_colour(sparse), 2.0);
    }
}
