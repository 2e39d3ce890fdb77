package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"docker-usermode-linux/internal/command"
)

// newMan writes manual pages: for whoever packages this program, and make host.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write manual pages into a directory",
		Hidden: true,
		Args:   arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			header := &doc.GenManHeader{Title: "UML", Section: "1", Source: command.Version(), Manual: "User-Mode Linux guests"}
			return doc.GenManTree(cmd.Root(), header, args[0])
		},
	}
}
