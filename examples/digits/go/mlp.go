package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"launcher"
	"launcher/examples/digits"
)

// network is one hidden layer of ReLUs with softmax on top. Its weights are one vector:
// first layer (inputs rows of hidden), second layer (hidden + 1 rows of classes).
type network struct {
	hidden int
	w      []float64
	h, p   []float64
}

func newNetwork(hidden int, rng *rand.Rand) *network {
	n := &network{hidden: hidden, w: make([]float64, inputs*hidden+(hidden+1)*classes), h: make([]float64, hidden+1), p: make([]float64, classes)}
	for k := range digits.Features * hidden {
		n.w[k] = rng.NormFloat64() * math.Sqrt(2.0/digits.Features)
	}
	for k := range hidden * classes {
		n.w[inputs*hidden+k] = rng.NormFloat64() * math.Sqrt(1/float64(hidden))
	}
	n.h[hidden] = 1
	return n
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// forward fills h and p for an image of Features values.
func (n *network) forward(x []float64) {
	h := n.h[:n.hidden]
	copy(h, n.w[digits.Features*n.hidden:inputs*n.hidden])
	for j, v := range x {
		if v != 0 {
			row := n.w[j*n.hidden : (j+1)*n.hidden]
			for k := range h {
				h[k] += v * row[k]
			}
		}
	}
	for k := range h {
		h[k] = max(h[k], 0)
	}
	second := n.w[inputs*n.hidden:]
	clear(n.p)
	for k, v := range n.h {
		for c := range n.p {
			n.p[c] += v * second[k*classes+c]
		}
	}
	top, norm := n.p[0], 0.0
	for _, v := range n.p {
		top = max(top, v)
	}
	for c := range n.p {
		n.p[c] = math.Exp(n.p[c] - top)
		norm += n.p[c]
	}
	for c := range n.p {
		n.p[c] /= norm
	}
}

// backward adds the gradient of one image's cross-entropy to g.
func (n *network) backward(x []float64, y int, g []float64) {
	n.forward(x)
	n.p[y]--
	first, second := g[:inputs*n.hidden], g[inputs*n.hidden:]
	weights := n.w[inputs*n.hidden:]
	for k, v := range n.h {
		back := 0.0
		for c, d := range n.p {
			second[k*classes+c] += v * d
			back += d * weights[k*classes+c]
		}
		if k == n.hidden || v == 0 {
			continue
		}
		for j, xv := range x {
			first[j*n.hidden+k] += xv * back
		}
		first[digits.Features*n.hidden+k] += back
	}
}

// mlp trains the network by SGD with momentum. Each global batch is shared out among the
// ranks and their gradients are added up, so the result does not depend on their number.
func mlp(ctx context.Context, g *group, o options) error {
	x, y, err := digits.Load()
	if err != nil {
		return err
	}
	image := func(i int) []float64 { return x[i*digits.Features : (i+1)*digits.Features] }
	var train, test []int
	for i := range y {
		if i%5 == 0 {
			test = append(test, i)
		} else {
			train = append(train, i)
		}
	}
	if o.batch < 1 || o.hidden < 1 {
		return fmt.Errorf("-batch and -hidden must be at least 1")
	}
	n := newNetwork(o.hidden, newRand(o.seed))
	// The speed of momentum is part of what a checkpoint needs, so both lie in one vector.
	state := make([]float64, 2*len(n.w))
	copy(state, n.w)
	epoch, err := resume(ctx, g, state)
	if err != nil {
		return err
	}
	n.w = state[:len(state)/2]
	speed := state[len(state)/2:]
	gradient, err := g.empty(len(n.w))
	if err != nil {
		return err
	}
	epochs := o.steps
	if epochs == 0 {
		epochs = 27
	}
	loss, wrong := 0.0, 0.0
	for epoch < epochs {
		epoch++
		order := rand.New(rand.NewPCG(o.seed, uint64(epoch))).Perm(len(train))
		for first := 0; first < len(order); first += o.batch {
			batch := order[first:min(first+o.batch, len(order))]
			clear(gradient)
			for _, i := range batch[len(batch)*g.rank/g.size : len(batch)*(g.rank+1)/g.size] {
				n.backward(image(train[i]), y[train[i]], gradient)
			}
			if err := g.sum(gradient); err != nil {
				return err
			}
			for k := range n.w {
				speed[k] = 0.9*speed[k] - o.lr*(gradient[k]/float64(len(batch))+1e-4*n.w[k])
				n.w[k] += speed[k]
			}
		}
		loss, wrong = 0, 0
		for _, i := range test {
			n.forward(image(i))
			loss -= math.Log(max(n.p[y[i]], 1e-12)) / float64(len(test))
			for _, v := range n.p {
				if v > n.p[y[i]] {
					wrong += 1 / float64(len(test))
					break
				}
			}
		}
		if err := tell(ctx, g, state, epoch, launcher.Metrics{"loss": loss, "error": wrong}); err != nil {
			return err
		}
		if err := wait(ctx, o.pause); err != nil {
			return err
		}
	}
	if g.rank == 0 {
		fmt.Printf("loss %.6f  error %.4f  epochs %d  ranks %d\n", loss, wrong, epoch, g.size)
		if o.out != "" {
			return save(o.out, n.w)
		}
	}
	return nil
}
