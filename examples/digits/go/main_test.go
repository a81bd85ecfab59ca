package main

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"launcher/examples/digits"
)

// crowd is a group of goroutines that add up in the order of ranks.
type crowd struct {
	mu    sync.Mutex
	meet  *sync.Cond
	size  int
	bufs  [][]float64
	here  int
	round int
}

func (c *crowd) join(rank int) *group {
	return &group{rank: rank, size: c.size, close: func() error { return nil },
		empty: func(n int) ([]float64, error) { return make([]float64, n), nil },
		sum: func(b []float64) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.bufs[rank] = b
			if c.here++; c.here < c.size {
				for round := c.round; round == c.round; {
					c.meet.Wait()
				}
				return nil
			}
			total := slices.Clone(c.bufs[0])
			for _, o := range c.bufs[1:] {
				for k := range total {
					total[k] += o[k]
				}
			}
			for _, o := range c.bufs {
				copy(o, total)
			}
			c.here, c.round = 0, c.round+1
			c.meet.Broadcast()
			return nil
		}}
}

// train runs a model by size ranks and gives the weights.
func train(t *testing.T, size int, model func(context.Context, *group, options) error, o options, n int) []float64 {
	t.Helper()
	c := &crowd{size: size, bufs: make([][]float64, size)}
	c.meet = sync.NewCond(&c.mu)
	o.out = filepath.Join(t.TempDir(), "w")
	var wg sync.WaitGroup
	for rank := range size {
		wg.Go(func() {
			if err := model(t.Context(), c.join(rank), o); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w := make([]float64, n)
	if err := load(o.out, w); err != nil {
		t.Fatal(err)
	}
	return w
}

func outside(t *testing.T) {
	for _, k := range []string{"LAUNCHER_SOCKET", "LAUNCHER_PROC", "LAUNCHER_PARAMS"} {
		t.Setenv(k, "")
	}
}

func apart(a, b []float64) (d float64) {
	for k := range a {
		d = max(d, math.Abs(a[k]-b[k]))
	}
	return d
}

// TestSoftmax: the optimum is known, and the same weights come out at every world size.
func TestSoftmax(t *testing.T) {
	outside(t)
	var first []float64
	o, sizes := options{lam: 1e-3}, []int{1, 2, 3, 4}
	if slow {
		o.steps, sizes = 2, []int{1, 3}
	}
	for _, size := range sizes {
		w := train(t, size, softmax, o, inputs*classes)
		one := (&crowd{size: 1, bufs: make([][]float64, 1)})
		one.meet = sync.NewCond(&one.mu)
		m, err := newRegression(one.join(0), 1e-3)
		if err != nil {
			t.Fatal(err)
		}
		v, err := m.evaluate(w)
		if err != nil {
			t.Fatal(err)
		}
		if !slow && (math.Abs(v.objective-0.26186455) > 1e-8 || math.Abs(v.accuracy-0.978854) > 1e-6 || math.Abs(math.Sqrt(dot(w[:held], w[:held]))-15.547594) > 1e-6) {
			t.Errorf("%d ranks: objective %.9f, accuracy %.6f", size, v.objective, v.accuracy)
		}
		if first == nil {
			first = w
		}
		if d := apart(w, first); d > 1e-10 {
			t.Errorf("%d ranks: weights differ by %g from those of one", size, d)
		}
	}
}

func TestMLP(t *testing.T) {
	outside(t)
	o := options{lr: 0.1, hidden: 16, batch: 32, steps: 5}
	if slow {
		o.hidden, o.steps = 8, 2
	}
	n := inputs*o.hidden + (o.hidden+1)*classes
	first := train(t, 1, mlp, o, n)
	for _, size := range []int{2, 4} {
		if d := apart(train(t, size, mlp, o, n), first); d > 1e-10 {
			t.Errorf("%d ranks: weights differ by %g", size, d)
		}
	}
	x, y, err := digits.Load()
	if err != nil {
		t.Fatal(err)
	}
	net := &network{hidden: o.hidden, w: first, h: make([]float64, o.hidden+1), p: make([]float64, classes)}
	net.h[o.hidden] = 1
	wrong := 0
	for i := 0; i < len(y); i += 5 {
		net.forward(x[i*digits.Features : (i+1)*digits.Features])
		if slices.Index(net.p, slices.Max(net.p)) != y[i] {
			wrong++
		}
	}
	if !slow && wrong > 36 { // a tenth; the network gets to 4 in a hundred
		t.Errorf("%d of 360 wrong after 5 epochs", wrong)
	}
}

// TestGradient holds the network's gradient against differences.
func TestGradient(t *testing.T) {
	x, y, err := digits.Load()
	if err != nil {
		t.Fatal(err)
	}
	net := newNetwork(5, newRand(1))
	loss := func() float64 { net.forward(x[:digits.Features]); return -math.Log(net.p[y[0]]) }
	g := make([]float64, len(net.w))
	net.backward(x[:digits.Features], y[0], g)
	for k := 0; k < len(net.w); k += 7 {
		const h = 1e-6
		old := net.w[k]
		net.w[k] = old + h
		up := loss()
		net.w[k] = old - h
		down := loss()
		net.w[k] = old
		if d := (up - down) / (2 * h); math.Abs(d-g[k]) > 1e-6 {
			t.Errorf("weight %d: gradient %v, difference %v", k, g[k], d)
		}
	}
}
