package dhcp

import "testing"

// TestNeighbours has a test for each bug of other programs of this kind, by the name of its report; see package slirp.
func TestNeighbours(t *testing.T) {
	// A long list of search domains breaks the whole network.
	t.Run("gvisor-tap-vsock#474", testLongSearchList)
	t.Run("gvisor-tap-vsock#474 DHCPv6", testLongSearchList6)
}
