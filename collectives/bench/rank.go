package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"launcher/collectives"
	"launcher/collectives/reduce"
)

// Rank is a rank of the benchmark: it reads orders and writes answers, one JSON line
// each, until its input ends.
func Rank(stdin io.Reader, stdout io.Writer) error {
	in := bufio.NewScanner(stdin)
	out := json.NewEncoder(stdout)
	r := &goRank{shared: map[int][]float32{}, private: map[int][]float32{}}
	for in.Scan() {
		var o order
		var a answer
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			a, err = r.obey(o)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return in.Err()
}

type goRank struct {
	comm            *collectives.Comm
	shared, private map[int][]float32
	other           []float32
	worker          reduce.Worker
}

func (r *goRank) obey(o order) (a answer, err error) {
	if o.Do == "join" {
		f, err := os.OpenFile(o.Path, os.O_RDWR, 0)
		if err != nil {
			return a, err
		}
		r.comm, err = collectives.Attach(f, o.Rank)
		return a, err
	}
	n := o.Bytes / 4
	buf := r.private[n]
	if o.Buffers == "shared" {
		buf = r.shared[n]
	}
	if buf == nil {
		clear(r.private) // one size at a time
		r.other = nil
		if o.Buffers == "shared" {
			for k, b := range r.shared {
				collectives.Free(r.comm, b)
				delete(r.shared, k)
			}
			if buf, err = collectives.Empty[float32](r.comm, n); err != nil {
				return a, err
			}
			r.shared[n] = buf
		} else {
			buf = make([]float32, n)
			r.private[n] = buf
		}
	}
	if o.What == memcpy && len(r.other) != n {
		r.other = make([]float32, n)
		clear(r.other)
	}
	if o.Check && o.What == allReduce {
		if a.Wrong, err = r.check(buf); err != nil {
			return a, err
		}
	}
	clear(buf)
	p := []unsafe.Pointer{unsafe.Pointer(&buf[0])}
	if err := r.comm.Barrier(); err != nil {
		return a, err
	}
	start := time.Now()
	switch o.What {
	case allReduce:
		for range o.Calls {
			if err := collectives.AllReduce(r.comm, buf, collectives.Sum); err != nil {
				return a, err
			}
		}
	case modify: // all ranks at once
		for range o.Calls {
			r.worker.Do(reduce.Float32, reduce.Sum, 1, p, p, n)
		}
	case memcpy: // one core
		if r.comm.Rank() == 0 {
			for range o.Calls {
				copy(r.other, buf)
			}
		}
	}
	a.NS = time.Since(start).Nanoseconds()
	return a, nil
}

// check sums numbers and compares.
func (r *goRank) check(buf []float32) (string, error) {
	for i := range buf {
		buf[i] = float32(i%1000 + r.comm.Rank())
	}
	if err := collectives.AllReduce(r.comm, buf, collectives.Sum); err != nil {
		return "", err
	}
	n := r.comm.Size()
	for i, v := range buf {
		if want := float32(n*(i%1000) + n*(n-1)/2); v != want {
			return fmt.Sprintf("element %d is %g, not %g", i, v, want), nil
		}
	}
	return "", nil
}
