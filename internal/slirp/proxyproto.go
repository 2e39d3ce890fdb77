package slirp

import (
	"encoding/binary"
	"net/netip"
)

// proxySignature begins a header of the PROXY protocol, version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is the header of the PROXY protocol, version 2 (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt,
// section 2.2), for a TCP connection from src to dst. Both are of one family.
func proxyHeader(src, dst netip.AddrPort) []byte {
	const (
		version2Proxy = 0x21
		tcpOverIPv4   = 0x11
		tcpOverIPv6   = 0x21
	)
	family, size := byte(tcpOverIPv4), 2*4+2*2
	if src.Addr().Is6() {
		family, size = tcpOverIPv6, 2*16+2*2
	}
	b := append([]byte(proxySignature), version2Proxy, family)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}
