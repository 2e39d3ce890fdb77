//go:build !embed

package builtin

// Without the build tag embed there is nothing in it.
var kernel, initramfs []byte
