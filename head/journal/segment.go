package journal

import (
	"io"
	"os"
	"path/filepath"

	"launcher/internal/errs"
	"launcher/wire/reclog"
)

const (
	segHeader = reclog.SegmentHeader
	maxRecord = reclog.MaxRecord
)

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

func segmentName(first, epoch uint64) string { return reclog.SegmentName(first, epoch) }

func parseSegment(name string) (segName, bool) {
	first, epoch, ok := reclog.ParseSegment(name)
	return segName{name, first, epoch}, ok
}

func snapshotName(seq uint64) string { return reclog.SnapshotName(seq) }

func parseSnapshot(name string) (uint64, bool) { return reclog.ParseSnapshot(name) }

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
	return reclog.AppendSegmentHeader(nil, epoch, first)
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
