package reclog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// The head's journal is a directory of segments and snapshots; so is the copy of it that a
// follower keeps. A segment begins with
//
//	magic "LNCHJNL1" · epoch u64 · first u64 · CRC32C of these three u32 · zero u32
//
// and records numbered from first follow. A snapshot is
//
//	magic "LNCHSNP1" · seq u64 · length u64 · CRC32C of these and the state u32 · state
const (
	segMagic       = "LNCHJNL1"
	snapMagic      = "LNCHSNP1"
	SegmentHeader  = 32
	SnapshotHeader = 28
)

// SegmentName is the name of the segment of records from first on by writer epoch.
func SegmentName(first, epoch uint64) string { return fmt.Sprintf("seg-%016x.%d", first, epoch) }

// ParseSegment reads the name of a segment.
func ParseSegment(name string) (first, epoch uint64, ok bool) {
	s, ok := strings.CutPrefix(name, "seg-")
	hex, dec, ok2 := strings.Cut(s, ".")
	first, err := strconv.ParseUint(hex, 16, 64)
	epoch, err2 := strconv.ParseUint(dec, 10, 64)
	return first, epoch, ok && ok2 && err == nil && err2 == nil && SegmentName(first, epoch) == name
}

// AppendSegmentHeader appends what a segment begins with.
func AppendSegmentHeader(b []byte, epoch, first uint64) []byte {
	from := len(b)
	b = append(b, segMagic...)
	b = binary.LittleEndian.AppendUint64(b, epoch)
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[from:], castagnoli))
	return append(b, 0, 0, 0, 0)
}

// SnapshotName is the name of the snapshot after record seq.
func SnapshotName(seq uint64) string { return fmt.Sprintf("snap-%016x", seq) }

// ParseSnapshot reads the name of a snapshot.
func ParseSnapshot(name string) (seq uint64, ok bool) {
	s, ok := strings.CutPrefix(name, "snap-")
	seq, err := strconv.ParseUint(s, 16, 64)
	return seq, ok && err == nil && SnapshotName(seq) == name
}

// AppendSnapshotHeader appends what the snapshot of state begins with.
func AppendSnapshotHeader(b []byte, seq uint64, state []byte) []byte {
	from := len(b)
	b = append(b, snapMagic...)
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(state)))
	crc := crc32.Update(crc32.Checksum(b[from:], castagnoli), castagnoli, state)
	return binary.LittleEndian.AppendUint32(b, crc)
}
