package journal

import (
	"time"

	"launcher/internal/errs"
)

// maxWrite bounds what is written at once, so that those who wait for the first records
// of a long queue do not wait for all of it.
const maxWrite = 4 << 20

// commitEvery is the time between two commits under load; burst are allowed at once.
const (
	commitEvery = 10 * time.Millisecond
	burst       = 8
)

// write is the writer: it ends when quit is closed or the journal failed.
func (j *Journal) write() {
	defer close(j.done)
	defer func() { _ = j.seg.f.Close() }()
	retry := time.NewTimer(0)
	<-retry.C
	// Under load commits are gathered: one sync serves all that came meanwhile. The first
	// few after a pause are not held up.
	free := time.Now().Add(-burst * commitEvery) // the pace allows a commit from here on
	for {
		if j.waiting() {
			now := time.Now()
			if wait := free.Sub(now); wait > 0 {
				retry.Reset(wait)
				select {
				case <-retry.C:
				case <-j.quit:
				}
			} else if early := now.Add(-burst * commitEvery); free.Before(early) {
				free = early
			}
			free = free.Add(commitEvery)
		}
		batch, rotate := j.take()
		if len(batch) == 0 && !rotate {
			select {
			case <-j.wake:
				continue
			case <-j.quit:
				j.fail(errClosed())
				return
			}
		}
		err := j.commit(batch, rotate)
		if errs.Is(err, errs.Fenced) {
			j.opts.Log.Error("journal: replaced", "err", err)
			j.fail(err)
			return
		}
		j.settle(batch, rotate, err)
		if err == nil {
			continue
		}
		retry.Reset(j.opts.RetryEvery)
		select {
		case <-retry.C:
		case <-j.quit:
			j.fail(err)
			return
		}
	}
}

// waiting says whether anything is to be written.
func (j *Journal) waiting() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.pending) > 0 || j.rotate
}

// take gives what is to be written next. It stays pending until settle.
func (j *Journal) take() (batch [][]byte, rotate bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if batch = fitting(j.pending); len(batch) > 0 || j.rotate {
		j.began = time.Now()
	}
	return batch, j.rotate
}

// fitting is how many of records, at least one if there is one, go into one write.
func fitting(records [][]byte) [][]byte {
	size, n := 0, 0
	for n < len(records) && (n == 0 || size+len(records[n]) <= maxWrite) {
		size += len(records[n])
		n++
	}
	return records[:n:n]
}

// commit makes batch safe. After an error none of it is in the journal, unless the disk
// cannot even be made shorter: then the next commit begins with that.
func (j *Journal) commit(batch [][]byte, rotate bool) error {
	if rotate || j.seg.log.End() >= j.opts.SegmentSize {
		if err := j.nextSegment(); err != nil {
			return err
		}
	}
	if len(batch) > 0 {
		end, next := j.seg.log.End(), j.seg.log.Next()
		if _, err := j.seg.log.Append(batch...); err != nil {
			return classify(err, "cannot write the journal %s", j.seg.path)
		}
		if err := dataSync(j.seg.f); err != nil {
			_ = j.seg.log.Undo(end, next) // tried again by the next Append
			return classify(err, "cannot write the journal %s", j.seg.path)
		}
		if err := j.fenced(); err != nil {
			// If the file could only not be looked at, it is tried again: not twice in the file.
			_ = j.seg.log.Undo(end, next)
			return err
		}
	}
	return nil
}

// nextSegment begins a new segment, unless the present one is empty.
func (j *Journal) nextSegment() error {
	if j.seg.log.Next() == j.seg.first {
		return nil
	}
	if err := j.fenced(); err != nil {
		return err
	}
	s, err := j.newSegment(j.seg.log.Next(), nil)
	if err != nil {
		return err
	}
	_ = j.seg.f.Close() // all of it is safe
	j.seg = s
	return nil
}

// settle notes how writing batch went.
func (j *Journal) settle(batch [][]byte, rotate bool, err error) {
	j.mu.Lock()
	was := j.stalled
	j.stalled, j.began = err, time.Time{}
	if err == nil {
		j.remember(batch)
		clear(j.pending[:len(batch)])
		j.pending = j.pending[len(batch):]
		if len(j.pending) == 0 {
			j.pending = nil
		}
		j.safe += uint64(len(batch))
		if rotate {
			j.rotate = false
		}
		if len(batch) > 0 {
			close(j.changed)
			j.changed = make(chan struct{})
		}
	}
	j.moved.Broadcast()
	j.mu.Unlock()
	switch {
	case err != nil && was == nil:
		j.opts.Log.Error("journal: cannot write, trying again", "err", err)
	case err == nil && was != nil:
		j.opts.Log.Info("journal: writing again")
	}
	if (err == nil) != (was == nil) && j.opts.OnStall != nil {
		j.opts.OnStall(err)
	}
}

// remember keeps what has become safe for Recent. mu must be held.
func (j *Journal) remember(batch [][]byte) {
	if j.opts.Recent == 0 {
		return
	}
	j.recent = append(j.recent, batch...)
	for _, b := range batch {
		j.size += len(b)
	}
	drop := 0
	for j.size > j.opts.Recent {
		j.size -= len(j.recent[drop])
		drop++
	}
	clear(j.recent[:drop])
	j.recent = j.recent[drop:]
}

// fail ends the journal's use.
func (j *Journal) fail(err error) {
	j.mu.Lock()
	fenced := j.failed == nil && errs.Is(err, errs.Fenced)
	j.failed = err
	j.moved.Broadcast()
	close(j.changed)
	j.changed = make(chan struct{})
	j.mu.Unlock()
	if fenced && j.opts.OnStall != nil {
		j.opts.OnStall(err)
	}
}
