package figures

import (
	"fmt"
	"os"
	"strings"
)

// WriteInto replaces the table that a page has between the lines "<!-- NAME: begin -->" and "<!-- NAME: end -->".
func WriteInto(page, name, table string) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	text, err := replaceTable(string(old), name, table)
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	return os.WriteFile(page, []byte(text), 0o644)
}

func replaceTable(page, name, table string) (string, error) {
	begin, end := fmt.Sprintf("<!-- %s: begin -->\n", name), fmt.Sprintf("<!-- %s: end -->\n", name)
	before, rest, ok1 := strings.Cut(page, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return "", fmt.Errorf("lacks the lines %q and %q", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + begin + table + end + after, nil
}

// Table is Markdown. The first column, without a title, has the titles of the rows.
func Table(columns []string, rows [][]string) string {
	var b strings.Builder
	b.WriteString("| |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", c)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r, " | "))
	}
	return b.String()
}
