package link

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Feature bits of a virtio network device (virtio 1.2, section 5.1.3).
const (
	featureCsum      = 1 << 0  // we take frames without transport checksum
	featureGuestCsum = 1 << 1  // the guest does
	featureMTU       = 1 << 3  // the configuration space has the MTU
	featureMAC       = 1 << 5  // and the guest's MAC address
	featureGuestTSO4 = 1 << 7  // the guest takes TCP segments of up to 64 KiB
	featureGuestTSO6 = 1 << 8  //
	featureHostTSO4  = 1 << 11 // we do
	featureHostTSO6  = 1 << 12 //
	featureHostECN   = 1 << 13 // also with congestion notification
	featureMergeRX   = 1 << 15 // one frame may fill several buffers of the guest's
)

// virtioHeader is struct virtio_net_hdr (virtio 1.2, section 5.1.6), which precedes every frame.
type virtioHeader struct {
	flags      uint8
	gsoType    uint8
	hdrLen     uint16 // of Ethernet, IP and TCP together, in bytes; for large segments
	gsoSize    uint16 // payload of the segments to cut it into
	csumStart  uint16 // from here to the end goes the checksum
	csumOffset uint16 // and to here, from csumStart on
	buffers    uint16 // of the guest's that the frame fills
}

const (
	virtioHeaderBytes = 12

	flagNeedsCsum = 1 // the checksum covers the pseudo-header only
	flagDataValid = 2 // it has been verified

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoECN   = 0x80 // a flag
)

func (h *virtioHeader) encode(b *[virtioHeaderBytes]byte) {
	b[0], b[1] = h.flags, h.gsoType
	binary.LittleEndian.PutUint16(b[2:], h.hdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.gsoSize)
	binary.LittleEndian.PutUint16(b[6:], h.csumStart)
	binary.LittleEndian.PutUint16(b[8:], h.csumOffset)
	binary.LittleEndian.PutUint16(b[10:], h.buffers)
}

// headerFor describes one of netstack's packets, which starts with the Ethernet header, to a driver with features.
func headerFor(pkt *stack.PacketBuffer, features uint64) virtioHeader {
	gso := pkt.GSOOptions
	switch {
	case gso.Type != stack.GSONone && gso.NeedsCsum:
	case features&featureGuestCsum != 0:
		return virtioHeader{flags: flagDataValid} // netstack computed it a moment ago, in the same memory
	default:
		return virtioHeader{}
	}
	h := virtioHeader{
		flags:      flagNeedsCsum,
		csumStart:  header.EthernetMinimumSize + gso.L3HdrLen,
		csumOffset: gso.CsumOffset,
	}
	if pkt.Data().Size() > int(gso.MSS) {
		h.hdrLen, h.gsoSize = uint16(pkt.HeaderSize()), gso.MSS
		switch gso.Type {
		case stack.GSOTCPv4:
			h.gsoType = gsoTCPv4
		case stack.GSOTCPv6:
			h.gsoType = gsoTCPv6
		}
	}
	return h
}
