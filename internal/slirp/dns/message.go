package dns

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	headerBytes = 12
	maxBytes    = 1<<16 - 1

	// minUDPBytes is what every client takes (RFC 1035 section 2.3.4).
	minUDPBytes = 512
	// maxUDPBytes bounds the buffer of a query over UDP, whatever its client takes; what is larger goes by TCP. Twice
	// what RFC 6891 section 6.2.5 suggests: no server sends as much.
	maxUDPBytes = 8 << 10
	// ourUDPBytes is what we say to take, where a message is ours: what passes any link in one piece (the DNS flag day
	// of 2020).
	ourUDPBytes = 1232

	typeIXFR dnsmessage.Type = 251 // RFC 1995
)

// query is a client's message, and what could be read of it.
type query struct {
	msg    []byte
	header dnsmessage.Header
	// question is the only one if asks is set. Otherwise the message has none, or several, or is not understood.
	question dnsmessage.Question
	asks     bool
	// edns is set if the client speaks EDNS, dnssec if it set DO there.
	edns, dnssec bool
	// size in bytes of the largest answer that the client takes over UDP, or that we do.
	size int
}

// isQuery says whether a message of a client is to be relayed: it has a header, and the QR bit is clear.
func isQuery(msg []byte) bool { return len(msg) >= headerBytes && msg[2]&0x80 == 0 }

// readQuery reads as much of a query as it understands. Precondition: isQuery.
func readQuery(msg []byte) *query {
	q := &query{msg: msg, size: minUDPBytes}
	var p dnsmessage.Parser
	q.header, _ = p.Start(msg)
	if questions(msg) != 1 {
		return q
	}
	var err error
	if q.question, err = p.Question(); err != nil {
		return q
	}
	q.asks = true
	if p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return q
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.dnssec = true, h.DNSSECAllowed()
			q.size = min(max(int(h.Class), minUDPBytes), maxUDPBytes)
			return q
		}
		if p.SkipAdditional() != nil {
			return q
		}
	}
}

// isTransfer says whether the answer can be many messages.
func (q *query) isTransfer() bool {
	return q.asks && (q.question.Type == dnsmessage.TypeAXFR || q.question.Type == typeIXFR)
}

// isAnswer says whether msg can be the answer: it has the query's identifier and question. A server that does not
// understand a query may leave the question out.
func (q *query) isAnswer(msg []byte) bool {
	if !q.isFollowing(msg) {
		return false
	}
	if !q.asks {
		return true
	}
	if questions(msg) == 0 {
		rcode := dnsmessage.RCode(msg[3] & 0x0f)
		return rcode != dnsmessage.RCodeSuccess && rcode != dnsmessage.RCodeNameError
	}
	var p dnsmessage.Parser
	_, _ = p.Start(msg) // the header is there
	got, err := p.Question()
	return err == nil && questions(msg) == 1 && got.Type == q.question.Type && got.Class == q.question.Class &&
		lower(got.Name) == lower(q.question.Name)
}

// isFollowing says whether msg can be a further message of the answer, which needs no question (RFC 5936 section
// 2.2.2).
func (q *query) isFollowing(msg []byte) bool {
	return len(msg) >= headerBytes && msg[2]&0x80 != 0 && msg[0] == q.msg[0] && msg[1] == q.msg[1]
}

// fits returns an answer that the client can take over UDP. One that is too large becomes one that says so: the TC bit
// makes the client ask again over TCP.
func (q *query) fits(answer []byte) (fitting []byte, whole bool) {
	if len(answer) <= q.size {
		return answer, true
	}
	var p dnsmessage.Parser
	h, _ := p.Start(answer)
	h.Truncated = true
	return q.reply(h, nil), false
}

// fail is the answer SERVFAIL.
func (q *query) fail() []byte {
	return q.reply(dnsmessage.Header{RCode: dnsmessage.RCodeServerFailure}, nil)
}

// reply makes an answer of ours. What it repeats of the query, the header need not have.
func (q *query) reply(h dnsmessage.Header, answers []dnsmessage.Resource) []byte {
	h.ID, h.OpCode = q.header.ID, q.header.OpCode
	h.RecursionDesired, h.CheckingDisabled = q.header.RecursionDesired, q.header.CheckingDisabled
	h.Response, h.RecursionAvailable = true, true
	m := dnsmessage.Message{Header: h, Answers: answers}
	if q.asks {
		m.Questions = []dnsmessage.Question{q.question}
	}
	if q.edns {
		// To be there in every answer to a query that has it, a truncated one too (RFC 6891 section 7).
		opt := dnsmessage.Resource{Body: &dnsmessage.OPTResource{}}
		_ = opt.Header.SetEDNS0(ourUDPBytes, 0, q.dnssec) // never fails
		m.Additionals = []dnsmessage.Resource{opt}
	}
	msg, err := m.Pack()
	if err != nil {
		// What was read can be written. If not, the header will do.
		m = dnsmessage.Message{Header: h}
		m.RCode = dnsmessage.RCodeServerFailure
		msg, _ = m.Pack()
	}
	return msg
}

// isFailure says whether an answer is one after which another server is worth asking.
func isFailure(answer []byte) bool {
	switch dnsmessage.RCode(answer[3] & 0x0f) {
	case dnsmessage.RCodeServerFailure, dnsmessage.RCodeNotImplemented, dnsmessage.RCodeRefused:
		return true
	}
	return false
}

// questions is the number that the header gives.
func questions(msg []byte) uint16 { return binary.BigEndian.Uint16(msg[4:]) }

// lower is a name without regard to case, which in DNS is ASCII's, and without the root's dot.
func lower(name dnsmessage.Name) string {
	b := name.Data[:name.Length]
	if len(b) > 0 && b[len(b)-1] == '.' {
		b = b[:len(b)-1]
	}
	out := make([]byte, len(b))
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return string(out)
}

// readMessage reads a message with its length in front (RFC 1035 section 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, fmt.Errorf("half a message: %w", err)
	}
	return msg, nil
}

// writeMessage writes a message with its length in front, in one piece.
func writeMessage(w io.Writer, msg []byte) error {
	buf := make([]byte, 0, 2+len(msg))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(msg)))
	_, err := w.Write(append(buf, msg...))
	return err
}
