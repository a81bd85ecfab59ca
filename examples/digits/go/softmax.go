package main

import (
	"context"
	"fmt"
	"math"

	"launcher"
	"launcher/examples/digits"
)

const (
	inputs  = digits.Features + 1 // the last one is always 1, its weights are the bias
	classes = digits.Classes
)

// regression is mean cross-entropy + lam/2 |W|^2 over all ranks' images. Each rank holds
// a part of them; what is summed over images goes through the group.
type regression struct {
	g      *group
	lam    float64
	x      []float64 // this rank's images, inputs values each
	y      []int
	p      []float64 // probabilities at the last w evaluated
	buffer []float64 // gradient, loss, hits: what the ranks add up
}

func newRegression(g *group, lam float64) (*regression, error) {
	x, y, err := digits.Load()
	if err != nil {
		return nil, err
	}
	first, end := digits.Images*g.rank/g.size, digits.Images*(g.rank+1)/g.size
	m := &regression{g: g, lam: lam, y: y[first:end], p: make([]float64, (end-first)*classes)}
	for i := first; i < end; i++ {
		m.x = append(append(m.x, x[i*digits.Features:(i+1)*digits.Features]...), 1)
	}
	m.buffer, err = g.empty(inputs*classes + 2)
	return m, err
}

// scores fills s with x*w.
func (m *regression) scores(i int, w, s []float64) {
	clear(s)
	for j, v := range m.x[i*inputs : (i+1)*inputs] {
		if v == 0 {
			continue
		}
		row := w[j*classes : (j+1)*classes]
		for c := range s {
			s[c] += v * row[c]
		}
	}
}

// spread adds x_i times d to the gradient g.
func (m *regression) spread(i int, d, g []float64) {
	for j, v := range m.x[i*inputs : (i+1)*inputs] {
		if v == 0 {
			continue
		}
		row := g[j*classes : (j+1)*classes]
		for c := range d {
			row[c] += v * d[c]
		}
	}
}

// held is how many weights, from the first, are held down: all but the bias.
const held = digits.Features * classes

type value struct {
	objective, accuracy float64
	gradient            []float64
}

func (m *regression) evaluate(w []float64) (value, error) {
	b := m.buffer
	clear(b)
	d := make([]float64, classes)
	for i, y := range m.y {
		p := m.p[i*classes : (i+1)*classes]
		m.scores(i, w, p)
		top, at := p[0], 0
		for c, v := range p {
			if v > top {
				top, at = v, c
			}
		}
		if at == y {
			b[len(b)-1]++
		}
		right, norm := p[y]-top, 0.0
		for c := range p {
			p[c] = math.Exp(p[c] - top)
			norm += p[c]
		}
		b[len(b)-2] += math.Log(norm) - right
		for c := range p {
			p[c] /= norm
			d[c] = p[c]
		}
		d[y]--
		m.spread(i, d, b[:inputs*classes])
	}
	if err := m.g.sum(b); err != nil {
		return value{}, err
	}
	v := value{objective: b[len(b)-2] / digits.Images, accuracy: b[len(b)-1] / digits.Images, gradient: make([]float64, len(w))}
	for k := range w {
		v.gradient[k] = b[k] / digits.Images
		if k < held {
			v.gradient[k] += m.lam * w[k]
			v.objective += m.lam / 2 * w[k] * w[k]
		}
	}
	return v, nil
}

// product is the second derivative at the last w evaluated, times v.
func (m *regression) product(v, out []float64) error {
	b := m.buffer[:inputs*classes]
	clear(b)
	s := make([]float64, classes)
	for i := range m.y {
		p := m.p[i*classes : (i+1)*classes]
		m.scores(i, v, s)
		mean := dot(p, s)
		for c := range s {
			s[c] = p[c] * (s[c] - mean)
		}
		m.spread(i, s, b)
	}
	if err := m.g.sum(b); err != nil {
		return err
	}
	for k := range out {
		out[k] = b[k] / digits.Images
		if k < held {
			out[k] += m.lam * v[k]
		}
	}
	return nil
}

func dot(a, b []float64) (s float64) {
	for i := range a {
		s += a[i] * b[i]
	}
	return s
}

// direction is Newton's: it solves second derivative * d = -gradient by conjugate
// gradients, better the nearer the end is.
func (m *regression) direction(gradient []float64) ([]float64, error) {
	n := len(gradient)
	d, r, hp := make([]float64, n), make([]float64, n), make([]float64, n)
	for k := range r {
		r[k] = -gradient[k]
	}
	p := append([]float64(nil), r...)
	rr := dot(r, r)
	enough := rr * math.Pow(min(0.1, math.Sqrt(math.Sqrt(rr))), 2)
	for range 500 {
		if err := m.product(p, hp); err != nil {
			return nil, err
		}
		curvature := dot(p, hp)
		if curvature <= 1e-30 {
			break
		}
		alpha := rr / curvature
		for k := range d {
			d[k] += alpha * p[k]
			r[k] -= alpha * hp[k]
		}
		before := rr
		if rr = dot(r, r); rr <= enough {
			break
		}
		for k := range p {
			p[k] = r[k] + rr/before*p[k]
		}
	}
	return d, nil
}

// softmax trains the regression by Newton's method to a gradient of 1e-12.
func softmax(ctx context.Context, g *group, o options) error {
	m, err := newRegression(g, o.lam)
	if err != nil {
		return err
	}
	w := make([]float64, inputs*classes)
	step, err := resume(ctx, g, w)
	if err != nil {
		return err
	}
	limit := o.steps
	if limit == 0 {
		limit = 50
	}
	at, err := m.evaluate(w)
	if err != nil {
		return err
	}
	for step < limit && dot(at.gradient, at.gradient) > 1e-24 {
		d, err := m.direction(at.gradient)
		if err != nil {
			return err
		}
		slope, scale := dot(at.gradient, d), 1.0
		next := make([]float64, len(w))
		for { // halve the step until it goes down
			for k := range next {
				next[k] = w[k] + scale*d[k]
			}
			trial, err := m.evaluate(next)
			if err != nil {
				return err
			}
			if trial.objective <= at.objective+1e-4*scale*slope+1e-15 || scale < 1e-6 {
				at = trial
				break
			}
			scale /= 2
		}
		w = next
		step++
		if g.rank == 0 {
			fmt.Printf("step %d: objective %.8f  gradient %.1e\n", step, at.objective, math.Sqrt(dot(at.gradient, at.gradient)))
		}
		if err := tell(ctx, g, w, step, launcher.Metrics{"objective": at.objective, "accuracy": at.accuracy}); err != nil {
			return err
		}
		if err := wait(ctx, o.pause); err != nil {
			return err
		}
	}
	if g.rank != 0 {
		return nil
	}
	fmt.Printf("objective %.8f  accuracy %.6f  |W| %.6f  steps %d  ranks %d\n", at.objective, at.accuracy, math.Sqrt(dot(w[:held], w[:held])), step, g.size)
	if o.out != "" {
		return save(o.out, w)
	}
	return nil
}
