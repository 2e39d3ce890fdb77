//go:build race

package slirp

// The race detector makes the soak tests ten times slower.
func init() { soakDefault = 2000 }
