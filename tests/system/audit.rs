//! The audit trail in a real journal: every query of docs/audit.md finds what it is for.

use crate::machine::Machine;

const PAGE: &str = include_str!("../../docs/audit.md");

pub fn documented_queries_answer(c: &Machine) {
    let mount = c.sh("journalctl -u cai F_EVENT=model.mounted -n 1 -o verbose --output-fields=F_TOKEN");
    let token = mount.lines().find_map(|line| line.trim().strip_prefix("F_TOKEN=")).unwrap();
    let page = PAGE.replace("\\\n        ", "").replace("TOKEN=TOKEN", &format!("TOKEN={token}"));
    let queries: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("    ").filter(|line| line.starts_with("journalctl ")))
        .collect();
    assert_eq!(queries.len(), 6);
    for query in &queries {
        let found = c.sh(query);
        assert!(!found.is_empty() && !found.contains("No entries"), "{query}: {found}");
        assert!(!found.contains("eyJ"), "a token: {found}");
    }
    let refused = c.sh(queries[4]);
    assert!(refused.contains("polkit does not allow") && !refused.contains("can be read at"), "{refused}");
}
