package link

import "gvisor.dev/gvisor/pkg/tcpip/stack"

// ring is a FIFO of packets that grows as needed and does not shrink.
type ring struct {
	slots       []*stack.PacketBuffer // len is a power of two
	first, size int
}

func (r *ring) len() int { return r.size }

func (r *ring) push(pkt *stack.PacketBuffer) {
	if r.size == len(r.slots) {
		grown := make([]*stack.PacketBuffer, max(2*len(r.slots), 64))
		for i := range r.size {
			grown[i] = r.slots[(r.first+i)&(len(r.slots)-1)]
		}
		r.slots, r.first = grown, 0
	}
	r.slots[(r.first+r.size)&(len(r.slots)-1)] = pkt
	r.size++
}

func (r *ring) front() *stack.PacketBuffer { return r.slots[r.first] }

func (r *ring) pop() *stack.PacketBuffer {
	pkt := r.slots[r.first]
	r.slots[r.first] = nil
	r.first = (r.first + 1) & (len(r.slots) - 1)
	r.size--
	return pkt
}
