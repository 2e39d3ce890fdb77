package userns

import "unsafe"

// stageCode returns where the stage's code lies; it does not depend on that.
func stageCode() unsafe.Pointer
