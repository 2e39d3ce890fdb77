//go:build !amd64

package userns

import "unsafe"

// stageCode has nothing: the kernel's architecture um is for x86 alone.
func stageCode() unsafe.Pointer { return nil }
