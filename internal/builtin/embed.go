//go:build embed

package builtin

import _ "embed"

//go:embed files/linux
var kernel []byte

//go:embed files/initramfs
var initramfs []byte
