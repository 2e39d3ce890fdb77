package userns

import (
	"bytes"
	"math"
	"os/exec"
	"strconv"
	"strings"
)

// span is count ids from start on.
type span struct{ start, count uint64 }

// end is the first id after it.
func (s span) end() uint64 { return s.start + s.count }

// maxIDs is how many ids there are: the last of 32 bits stands for none.
const maxIDs = math.MaxUint32

// maxExtents is how many ranges a map may have (UID_GID_MAP_MAX_EXTENTS in include/linux/user_namespace.h).
const maxExtents = 340

// parseSubIDs returns the ranges of one owner, who has several names, in the order of the file: lines of name:start:count
// (subuid(5)). What is no such line is passed over, as newuidmap does: a mistake in another user's line is none of ours.
func parseSubIDs(data []byte, owners ...string) []span {
	var spans []span
	for line := range bytes.Lines(data) {
		fields := strings.Split(string(bytes.TrimSpace(line)), ":")
		if len(fields) != 3 {
			continue
		}
		for _, owner := range owners {
			if owner != "" && fields[0] == owner {
				spans = appendSpan(spans, fields[1], fields[2])
				break
			}
		}
	}
	return spans
}

// parseGetsubids returns the ranges that getsubids(1) prints: lines like "0: name 100000 65536".
func parseGetsubids(data []byte) []span {
	var spans []span
	for line := range bytes.Lines(data) {
		if fields := strings.Fields(string(line)); len(fields) == 4 && strings.HasSuffix(fields[0], ":") {
			spans = appendSpan(spans, fields[2], fields[3])
		}
	}
	return spans
}

// appendSpan leaves out what is no range of ids.
func appendSpan(spans []span, start, count string) []span {
	first, err := strconv.ParseUint(start, 10, 32)
	if err != nil {
		return spans
	}
	n, err := strconv.ParseUint(count, 10, 32)
	if err != nil || n == 0 || first+n > maxIDs {
		return spans
	}
	return append(spans, span{first, n})
}

// getsubids asks the program of that name, where there is one (shadow 4.10).
func getsubids(option, name string) []span {
	path, err := lookPath("getsubids")
	if err != nil {
		return nil
	}
	args := []string{name}
	if option == "-g" {
		args = []string{option, name}
	}
	out, err := exec.Command(path, args...).Output()
	if err != nil {
		return nil
	}
	return parseGetsubids(out)
}

// layOut makes a map: own is 0, then comes one span after the other. The kernel takes no id twice, on either side, so what
// a span shares with own or an earlier one is left out.
func layOut(own uint32, spans []span) []Range {
	ranges := []Range{{0, own, 1}}
	used := []span{{uint64(own), 1}}
	next := uint64(1)
	for _, s := range spans {
		for _, piece := range without(s, used) {
			if next+piece.count > maxIDs || len(ranges) == maxExtents {
				return ranges
			}
			ranges = append(ranges, Range{uint32(next), uint32(piece.start), uint32(piece.count)})
			next += piece.count
		}
		used = append(used, s)
	}
	return ranges
}

// without returns what is left of a span.
func without(s span, used []span) []span {
	left := []span{s}
	for _, u := range used {
		var pieces []span
		for _, l := range left {
			if before := min(l.end(), u.start); before > l.start {
				pieces = append(pieces, span{l.start, before - l.start})
			}
			if after := max(l.start, u.end()); after < l.end() {
				pieces = append(pieces, span{after, l.end() - after})
			}
		}
		left = pieces
	}
	return left
}

func total(ranges []Range) uint64 {
	var n uint64
	for _, r := range ranges {
		n += uint64(r.Count)
	}
	return n
}

// mapped tells how many ids from 0 on, without a gap, a map of the kernel's has: lines of inside, outside and count, in
// the order in which they were written (user_namespaces(7)).
func mapped(data []byte) uint64 {
	counts := map[uint64]uint64{}
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) != 3 {
			continue
		}
		inside, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			continue
		}
		if count, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
			counts[inside] = count
		}
	}
	var n uint64
	for counts[n] > 0 {
		n += counts[n]
	}
	return n
}

// outsideOf tells what an id is outside, by a map of the kernel's; itself where that has none.
func outsideOf(data []byte, id int) int {
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) != 3 {
			continue
		}
		var n [3]int
		valid := true
		for i, field := range fields {
			v, err := strconv.ParseUint(field, 10, 32)
			n[i], valid = int(v), valid && err == nil
		}
		if first, out, count := n[0], n[1], n[2]; valid && id >= first && id-first < count {
			return out + id - first
		}
	}
	return id
}
