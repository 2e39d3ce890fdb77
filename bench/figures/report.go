package figures

import (
	"flag"
	"fmt"
	"os"
)

// Report is the command "report [-into PAGE] FILE": it prints what text makes of the figures of a benchmark in FILE, and
// writes page, without more, between the marks of that name in PAGE.
func Report(args []string, benchmark, name string, text func(Figures) (page, more string)) error {
	set := flag.NewFlagSet("report", flag.ContinueOnError)
	into := set.String("into", "", "a page to write the table into")
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() != 1 {
		return fmt.Errorf("report: %d files given, takes one", set.NArg())
	}
	raw, err := os.Open(set.Arg(0))
	if err != nil {
		return err
	}
	defer raw.Close()
	f, err := Read(raw, benchmark)
	if err != nil {
		return err
	}
	page, more := text(f)
	fmt.Print(page, more)
	if *into == "" {
		return nil
	}
	return WriteInto(*into, name, page)
}
