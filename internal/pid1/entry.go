package pid1

import (
	"math/bits"
	"sync/atomic"
	"syscall"
)

// Shared with entry_amd64.s.
var (
	held     uint64 // forwarded signals that came and were held back, signal 1 as the lowest bit; atomic
	released uint32 // 1: none is held back any longer; atomic
)

// release ends the holding of signals, and returns those that were held. Without pid1entry there are none.
func release() []syscall.Signal {
	atomic.StoreUint32(&released, 1)
	var signals []syscall.Signal
	for set := atomic.SwapUint64(&held, 0); set != 0; set &= set - 1 {
		signals = append(signals, syscall.Signal(bits.TrailingZeros64(set)+1))
	}
	return signals
}
