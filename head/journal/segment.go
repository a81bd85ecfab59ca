package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"launcher/internal/errs"
	"launcher/wire/reclog"
)

// A segment begins with
//
//	magic "LNCHJNL1" · epoch u64 · first u64 · CRC32C of these three u32 · zero u32
//
// and reclog records numbered from first follow.
const (
	segMagic  = "LNCHJNL1"
	segHeader = 32
	maxRecord = reclog.MaxRecord
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// file is what a segment is written to; *os.File but in tests.
type file interface {
	reclog.File
	Sync() error
	Close() error
}

// segName is a segment as its name says.
type segName struct {
	name  string
	first uint64
	epoch uint64
}

func segmentName(first, epoch uint64) string { return fmt.Sprintf("seg-%016x.%d", first, epoch) }

func parseSegment(name string) (segName, bool) {
	s, ok := strings.CutPrefix(name, "seg-")
	hex, dec, ok2 := strings.Cut(s, ".")
	first, err := strconv.ParseUint(hex, 16, 64)
	epoch, err2 := strconv.ParseUint(dec, 10, 64)
	n := segName{name, first, epoch}
	return n, ok && ok2 && err == nil && err2 == nil && segmentName(first, epoch) == name
}

func snapshotName(seq uint64) string { return fmt.Sprintf("snap-%016x", seq) }

func parseSnapshot(name string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, "snap-")
	seq, err := strconv.ParseUint(s, 16, 64)
	return seq, ok && err == nil && snapshotName(seq) == name
}

// segment is the one being written.
type segment struct {
	path  string
	first uint64
	f     file
	log   *reclog.Log
}

func createFile(path string) (file, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// newSegment begins the segment of records from first on, with records in it. It gets
// its name only when it is safe, so that it replaces an older one all at once. After an
// error nothing of it is left.
func (j *Journal) newSegment(first uint64, records [][]byte) (_ *segment, err error) {
	s := &segment{path: filepath.Join(j.dir, segmentName(first, j.epoch)), first: first}
	tmp := s.path + ".tmp"
	if s.f, err = j.open(tmp); err != nil {
		return nil, classify(err, "cannot begin a journal segment")
	}
	defer func() {
		if err != nil {
			_ = s.f.Close()
			_ = os.Remove(tmp)
		}
	}()
	if _, err = s.f.WriteAt(segmentHeader(j.epoch, first), 0); err != nil {
		return nil, classify(err, "cannot begin a journal segment")
	}
	if s.log, err = reclog.Open(s.f, segHeader, first, nil); err != nil {
		return nil, err
	}
	for len(records) > 0 && err == nil {
		n := len(fitting(records))
		_, err = s.log.Append(records[:n]...)
		records = records[n:]
	}
	if err == nil {
		err = dataSync(s.f)
	}
	if err == nil {
		err = os.Rename(tmp, s.path)
	}
	if err != nil {
		return nil, classify(err, "cannot begin a journal segment")
	}
	return s, syncDir(j.dir)
}

func segmentHeader(epoch, first uint64) []byte {
	b := make([]byte, 0, segHeader)
	b = append(b, segMagic...)
	b = binary.LittleEndian.AppendUint64(b, epoch)
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return append(b, 0, 0, 0, 0)
}

// checkHeader says whether f begins as a segment with the name n does. torn: it holds no
// more than a header that never became safe.
func checkHeader(f *os.File, n segName) (torn bool, err error) {
	var b [segHeader]byte
	k, err := f.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return false, classify(err, "cannot read the journal segment %s", f.Name())
	}
	if k < segHeader || string(b[:]) != string(segmentHeader(n.epoch, n.first)) {
		if st, err := f.Stat(); err == nil && st.Size() <= segHeader {
			return true, nil
		}
		return false, errs.New(errs.Corrupt, "%s: damaged at offset 0: not the header of this journal segment", f.Name())
	}
	return false, nil
}
