package dns

import "testing"

// TestNeighbours has a test for each bug of other programs of this kind, by the name of its report; see package slirp.
func TestNeighbours(t *testing.T) {
	// A long list of search domains breaks the whole network.
	t.Run("gvisor-tap-vsock#474", testLongSearchList)
	// Storms of queries pile up.
	t.Run("gvisor-tap-vsock#622", testStorm)
	// What is too long for UDP cannot be had over TCP.
	t.Run("gvisor-tap-vsock#223", testTruncation)
}
