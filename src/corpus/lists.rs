//! The lists the people are made of, compiled in; `datasets/README.md` says where each comes from.

use std::sync::OnceLock;

const GIVEN: &str = include_str!("../../datasets/lists/given_names.txt");
const FAMILY: &str = include_str!("../../datasets/lists/family_names.txt");
const CITIES: &str = include_str!("../../datasets/lists/cities.txt");
const UNIVERSITIES: &str = include_str!("../../datasets/lists/universities.txt");
const MAJORS: &str = include_str!("../../datasets/lists/majors.txt");
const COMPANIES: &str = include_str!("../../datasets/lists/companies.txt");
const TEMPLATES: &str = include_str!("../../datasets/lists/templates.txt");
const REAL_PEOPLE: &str = include_str!("../../datasets/lists/real_people.jsonl");

/// Names of one culture.
#[derive(Debug)]
pub(super) struct Culture {
    pub(super) name: &'static str,
    /// Given names of women, then of men.
    pub(super) given: [Vec<&'static str>; 2],
    /// Family names as women bear them, then as men do; the same length.
    pub(super) family: [Vec<&'static str>; 2],
    pub(super) family_first: bool,
}

#[derive(Debug)]
pub(super) struct Lists {
    pub(super) cultures: Vec<Culture>,
    pub(super) cities: Vec<&'static str>,
    pub(super) universities: Vec<&'static str>,
    pub(super) majors: Vec<&'static str>,
    pub(super) companies: Vec<&'static str>,
    /// Field and sentence.
    pub(super) templates: Vec<(&'static str, &'static str)>,
    pub(super) real_people: Vec<RealPerson>,
}

/// A well-known person of the few-shot examples.
#[derive(Debug, serde::Deserialize)]
pub(super) struct RealPerson {
    pub(super) name: String,
    pub(super) pronoun: String,
    pub(super) date: String,
    pub(super) city: String,
    pub(super) university: String,
    pub(super) major: String,
    pub(super) company: String,
}

/// The lists, parsed once.
pub(super) fn lists() -> &'static Lists {
    static LISTS: OnceLock<Lists> = OnceLock::new();
    LISTS.get_or_init(|| Lists {
        cultures: cultures(),
        cities: lines(CITIES).collect(),
        universities: lines(UNIVERSITIES).collect(),
        majors: lines(MAJORS).collect(),
        companies: lines(COMPANIES).collect(),
        templates: lines(TEMPLATES).filter_map(|l| l.split_once(": ")).collect(),
        // A test parses every line; a bad one could only come from a bad edit of the list.
        real_people: lines(REAL_PEOPLE).filter_map(|l| serde_json::from_str(l).ok()).collect(),
    })
}

fn lines(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'))
}

fn cultures() -> Vec<Culture> {
    let mut all: Vec<Culture> = Vec::new();
    for (key, names) in lines(FAMILY).filter_map(|l| l.split_once(": ")) {
        let (name, order) = key.split_once(' ').unwrap_or((key, ""));
        let form = |of_men: bool| -> Vec<&'static str> {
            let pick = |f: &'static str| f.split_once('/').map_or(f, |(m, f)| if of_men { m } else { f });
            names.split(", ").map(pick).collect()
        };
        all.push(Culture {
            name,
            given: [Vec::new(), Vec::new()],
            family: [form(false), form(true)],
            family_first: order == "family-first",
        });
    }
    for (key, names) in lines(GIVEN).filter_map(|l| l.split_once(": ")) {
        let Some((name, gender)) = key.split_once(' ') else { continue };
        if let Some(culture) = all.iter_mut().find(|c| c.name == name) {
            culture.given[usize::from(gender == "m")] = names.split(", ").collect();
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_lists_are_generous_and_unrepeated() {
        let l = lists();
        for (list, at_least) in
            [(&l.cities, 150), (&l.universities, 150), (&l.majors, 80), (&l.companies, 150)]
        {
            assert!(list.len() >= at_least);
            assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len());
        }
        assert!(l.cities.iter().all(|c| c.contains(", ")), "every city has its country");
        assert_eq!(l.real_people.len(), lines(REAL_PEOPLE).count());
        assert_eq!(l.real_people.len(), 10);
        assert_eq!(l.templates.len(), lines(TEMPLATES).count());
    }

    #[test]
    fn a_full_name_belongs_to_one_combination() {
        let mut family_of: BTreeMap<&str, &str> = BTreeMap::new();
        for culture in &lists().cultures {
            let [women, men] = &culture.given;
            assert_eq!((women.len(), men.len()), (20, 20), "{}", culture.name);
            assert_eq!(culture.family[0].len(), 30, "{}", culture.name);
            let given: BTreeSet<_> = women.iter().chain(men).collect();
            assert_eq!(given.len(), 40, "{}: a given name stands twice or under both genders", culture.name);
            assert!(given.iter().all(|n| !n.contains(char::is_whitespace)));
            let forms: BTreeSet<_> = culture.family.iter().flatten().collect();
            for form in forms {
                assert_eq!(family_of.insert(form, culture.name), None, "{form} stands under two cultures");
                // Otherwise "Ana De Luca" could be Ana + De Luca or Ana De + Luca.
                let first = form.split(' ').next().unwrap();
                assert!(!form.contains(' ') || !given.iter().any(|g| **g == first), "{form}");
            }
        }
        assert_eq!(lists().cultures.len(), 27);
    }
}
