package link

import (
	"encoding/binary"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// deaf is an endpoint whose netstack's answers go nowhere, as if the guest had no driver yet.
func deaf(t testing.TB) (*Endpoint, *stack.Stack) {
	l := startWithoutGuest(t)
	return l.Endpoint, newStack(t, l, hostAddrs)
}

// FuzzFrame feeds what the guest may send, header and frame, cut into parts, to the parser and a real netstack.
func FuzzFrame(f *testing.F) {
	plain := make([]byte, virtioHeaderBytes)
	arp := make([]byte, header.ARPSize)
	header.ARP(arp).SetIPv4OverEthernet()
	header.ARP(arp).SetOp(header.ARPRequest)
	copy(header.ARP(arp).ProtocolAddressTarget(), hostAddrs[0].AsSlice())
	f.Add(append(plain, frame(header.EthernetBroadcastAddress, header.ARPProtocolNumber, arp)...), uint16(12), uint16(20))

	packet := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	addrs := header.IPv4Fields{
		TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: full(guestAddrs[0], 0).Addr, DstAddr: full(hostAddrs[0], 0).Addr,
	}
	header.IPv4(packet).Encode(&addrs)
	header.TCP(packet[header.IPv4MinimumSize:]).Encode(&header.TCPFields{
		SrcPort: 1000, DstPort: 80, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn,
	})
	f.Add(append(plain, frame(ours, header.IPv4ProtocolNumber, packet)...), uint16(0), uint16(0))
	packet[9] = byte(header.ICMPv4ProtocolNumber)
	packet[header.IPv4MinimumSize] = byte(header.ICMPv4Echo)
	f.Add(append(plain, frame(ours, header.IPv4ProtocolNumber, packet)...), uint16(3), uint16(50))
	packet6 := make([]byte, header.IPv6MinimumSize+header.ICMPv6EchoMinimumSize)
	header.IPv6(packet6).Encode(&header.IPv6Fields{
		PayloadLength: header.ICMPv6EchoMinimumSize, TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 255,
		SrcAddr: full(guestAddrs[1], 0).Addr, DstAddr: full(hostAddrs[1], 0).Addr,
	})
	packet6[header.IPv6MinimumSize] = byte(header.ICMPv6EchoRequest)
	f.Add(append(plain, frame(ours, header.IPv6ProtocolNumber, packet6)...), uint16(0), uint16(13))

	e, s := deaf(f)
	for _, a := range hostAddrs {
		l, err := gonet.ListenTCP(s, full(a, 80), proto(a))
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { l.Close() })
	}
	f.Fuzz(func(t *testing.T, b []byte, cut1, cut2 uint16) {
		first := min(int(cut1), len(b))
		second := min(first+int(cut2), len(b))
		pkt := e.copyFrame([][]byte{b[:first], b[first:second], b[second:]})
		if pkt == nil {
			return
		}
		if d := e.dispatcher.Load(); d != nil {
			d.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
		}
		pkt.DecRef()
	})
}

// FuzzRing has random bytes in both rings, while the device serves them and netstack sends.
func FuzzRing(f *testing.F) {
	desc := func(addr uint64, length uint32, flags, next uint16) []byte {
		b := binary.LittleEndian.AppendUint64(nil, addr)
		b = binary.LittleEndian.AppendUint32(b, length)
		return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, flags), next)
	}
	const at = 1<<20 + 32<<10 // the first buffer
	f.Add(uint16(8), uint16(2), desc(at, 4096, 2, 0), desc(at, 100, 0, 0))
	f.Add(uint16(1), uint16(1), append(desc(at, 10, 3, 1), desc(at, 100, 2, 0)...), append(desc(at, 12, 1, 1), desc(at, 100, 0, 0)...))
	f.Add(uint16(300), uint16(1), []byte{}, desc(1<<20, 32, 4, 0))
	f.Fuzz(func(t *testing.T, availToGuest, availFromGuest uint16, toGuest, fromGuest []byte) {
		l := start(t, nil)
		l.nic.Pause(true)
		for ring, table := range [][]byte{toGuest, fromGuest} {
			copy(l.nic.Memory()[ring*16<<10:][:16*256], table)
		}
		binary.LittleEndian.PutUint16(l.nic.Memory()[16*256+2:], availToGuest)
		binary.LittleEndian.PutUint16(l.nic.Memory()[16<<10+16*256+2:], availFromGuest)
		var sender sync.WaitGroup
		sender.Go(func() {
			for _, size := range []int{0, 10, 1400, 9000} {
				l.write(udpPacket(size, 0))
				l.write(tcpPacket())
			}
		})
		l.nic.Kick()
		l.write(tcpPacket())
		l.Close()
		sender.Wait()
		l.end(t)
		l.nic.Close()
	})
}
