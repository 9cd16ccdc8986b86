package boot

import (
	"cmp"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"teekms/internal/attest"
)

const (
	pageSize = 4096
	// lowMemory is how much memory QEMU puts below 4 GiB in a guest of at least
	// manyMemory; a smaller one has all of it there.
	lowMemory  = 0x80000000
	manyMemory = 0xB0000000
	maxMemory  = 1 << 46
	maxRanges  = 64
)

// Layout is the part of a firmware's memory map that decides what the hand-off
// block says: which pages were given to the guest before it ran.
type Layout struct {
	hob    uint64 // address of the hand-off block
	ranges []memoryRange
}

// memoryRange is in bytes. The ranges of a Layout are sorted, not empty, do not
// overlap and end below lowMemory.
type memoryRange struct{ start, size uint64 }

// ParseWitness reads the short form of a Layout: numbers in LEB128, which count
// pages.
//
//	base | hand-off block - base | n | n × (start - base, pages)
func ParseWitness(b []byte) (*Layout, error) {
	next := func() (uint64, error) {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > lowMemory/pageSize {
			return 0, errors.New("number in hand-off block witness too large or cut off")
		}
		b = b[n:]
		return v, nil
	}
	var head [3]uint64
	for i := range head {
		var err error
		if head[i], err = next(); err != nil {
			return nil, err
		}
	}
	base, count := head[0], head[2]
	if count > maxRanges {
		return nil, fmt.Errorf("more than %d memory ranges", maxRanges)
	}
	l := &Layout{hob: (base + head[1]) * pageSize}
	for range count {
		delta, err := next()
		if err != nil {
			return nil, err
		}
		pages, err := next()
		if err != nil {
			return nil, err
		}
		l.ranges = append(l.ranges, memoryRange{(base + delta) * pageSize, pages * pageSize})
	}
	if len(b) != 0 {
		return nil, errors.New("bytes after hand-off block witness")
	}
	return l, l.check()
}

// Witness writes the short form that [ParseWitness] reads.
func (l *Layout) Witness() []byte {
	base := l.ranges[0].start
	b := binary.AppendUvarint(nil, base/pageSize)
	b = binary.AppendUvarint(b, (l.hob-base)/pageSize)
	b = binary.AppendUvarint(b, uint64(len(l.ranges)))
	for _, r := range l.ranges {
		b = binary.AppendUvarint(b, (r.start-base)/pageSize)
		b = binary.AppendUvarint(b, r.size/pageSize)
	}
	return b
}

func (l *Layout) check() error {
	if len(l.ranges) == 0 {
		return errors.New("no memory ranges")
	}
	if !slices.IsSortedFunc(l.ranges, func(a, b memoryRange) int { return cmp.Compare(a.start, b.start) }) {
		return errors.New("memory ranges out of order")
	}
	end := uint64(0)
	for _, r := range l.ranges {
		if r.size == 0 || r.start < end || r.start >= lowMemory || r.size >= lowMemory-r.start {
			return errors.New("memory range empty, overlapping or too high")
		}
		end = r.start + r.size
	}
	if l.hob < l.ranges[0].start || l.hob >= lowMemory {
		return errors.New("hand-off block outside of its memory ranges")
	}
	return nil
}

// HandOffBlock returns the digest of the list that tells the firmware about
// the memory of a guest with that many bytes of it.
func (l *Layout) HandOffBlock(memory uint64) (attest.Measurement, error) {
	last := l.ranges[len(l.ranges)-1]
	cursor := last.start + last.size
	if memory <= cursor || memory > maxMemory || memory%pageSize != 0 {
		return attest.Measurement{}, fmt.Errorf("memory of %d bytes", memory)
	}
	const accepted, unaccepted = 0, 7
	var resources []byte
	from := uint64(0)
	for _, r := range l.ranges {
		if from < r.start {
			resources = appendResource(resources, unaccepted, memoryRange{from, r.start - from})
		}
		resources = appendResource(resources, accepted, r)
		from = r.start + r.size
	}
	below := memory
	if memory >= manyMemory {
		below = lowMemory
	}
	resources = appendResource(resources, unaccepted, memoryRange{cursor, below - cursor})
	if above := memory - below; above > 0 {
		resources = appendResource(resources, unaccepted, memoryRange{1 << 32, above})
	}
	// The header's last field is the address of the end of the list, where
	// eight more bytes mark it.
	list := appendHeader(nil, 1, 56)
	list = binary.LittleEndian.AppendUint32(list, 9)
	list = append(list, make([]byte, 36)...)
	list = binary.LittleEndian.AppendUint64(list, l.hob+uint64(56+len(resources))+8)
	return sha512.Sum384(append(list, resources...)), nil
}

func appendHeader(b []byte, kind, size uint16) []byte {
	b = binary.LittleEndian.AppendUint16(b, kind)
	b = binary.LittleEndian.AppendUint16(b, size)
	return append(b, 0, 0, 0, 0)
}

// appendResource appends a resource descriptor without owner, for memory that is
// present, initialized and tested.
func appendResource(b []byte, kind uint32, r memoryRange) []byte {
	b = appendHeader(b, 3, 48)
	b = append(b, make([]byte, 16)...)
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = binary.LittleEndian.AppendUint32(b, 7)
	b = binary.LittleEndian.AppendUint64(b, r.start)
	return binary.LittleEndian.AppendUint64(b, r.size)
}
