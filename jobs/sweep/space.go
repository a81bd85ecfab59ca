package sweep

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"strconv"

	"launcher/wire"
)

// A Value is one parameter of a trial. V is what JSON can hold.
type Value struct {
	Name string
	V    any
}

// Size is how many points a grid has; math.MaxInt64 when there are more than that.
func Size(s *wire.SweepSpec) int64 {
	n := uint64(1)
	for _, p := range s.Parameters {
		hi, lo := bits.Mul64(n, uint64(points(p)))
		if hi != 0 || lo > math.MaxInt64 {
			return math.MaxInt64
		}
		n = lo
	}
	return int64(n)
}

// points is how many values a parameter takes on a grid.
func points(p wire.Parameter) int64 {
	switch p.Distribution {
	case "int_uniform":
		return steps(math.Floor(p.Max) - math.Ceil(p.Min))
	case "q_uniform":
		return steps(math.Floor((p.Max-p.Min)/p.Q + 1e-9))
	}
	return max(1, int64(len(p.Values)))
}

// steps is n+1, at least 1, and bounded where n is not a number to count with.
func steps(n float64) int64 {
	const most = 1 << 53
	if !(n < most) {
		return most
	}
	return max(1, int64(n)+1)
}

// Params gives the parameters of trial i, in the order of the file. A grid is walked
// with its last parameter fastest.
func Params(s *wire.SweepSpec, i uint32) []Value {
	out := make([]Value, len(s.Parameters))
	if s.Method == "grid" {
		rest := int64(i)
		for k := len(out) - 1; k >= 0; k-- {
			p := s.Parameters[k]
			n := points(p)
			out[k] = Value{p.Name, point(p, rest%n)}
			rest /= n
		}
		return out
	}
	r := dice{rand.NewPCG(s.Seed, mix(uint64(i)+1))}
	for k, p := range s.Parameters {
		out[k] = Value{p.Name, r.sample(p)}
	}
	return out
}

// point is the i-th value of a parameter on a grid.
func point(p wire.Parameter, i int64) any {
	switch p.Distribution {
	case "int_uniform":
		return int64(math.Ceil(p.Min)) + i
	case "q_uniform":
		return stepped(p, p.Min+float64(i)*p.Q)
	}
	if int(i) < len(p.Values) {
		return p.Values[i]
	}
	return nil
}

// dice draws numbers. It uses nothing of the library but the generator itself, whose
// output is fixed, so that a sweep continued by a later version draws the same trials.
type dice struct{ src *rand.PCG }

// mix spreads neighbouring numbers over the 64 bits (splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// float is uniform in [0, 1).
func (d dice) float() float64 { return float64(d.src.Uint64()>>11) / (1 << 53) }

// below is uniform in 0 .. n-1.
func (d dice) below(n int64) int64 {
	hi, _ := bits.Mul64(d.src.Uint64(), uint64(n))
	return int64(hi)
}

// normal is standard normal (Box and Muller).
func (d dice) normal() float64 {
	u, v := 1-d.float(), d.float()
	return math.Sqrt(-2*math.Log(u)) * math.Cos(2*math.Pi*v)
}

func (d dice) sample(p wire.Parameter) any {
	within := func(lo, hi float64) float64 {
		u := d.float()
		if w := hi - lo; !math.IsInf(w, 0) {
			return lo + u*w
		}
		return lo*(1-u) + hi*u
	}
	clip := func(x float64) float64 { return min(max(x, p.Min), p.Max) }
	switch p.Distribution {
	case "uniform":
		return within(p.Min, p.Max)
	case "int_uniform":
		lo := int64(math.Ceil(p.Min))
		return lo + d.below(max(1, int64(math.Floor(p.Max))-lo+1))
	case "q_uniform":
		return stepped(p, clipStep(p, within(p.Min, p.Max)))
	case "log_uniform":
		return math.Exp(within(p.Min, p.Max))
	case "q_log_uniform":
		return stepped(p, math.Exp(within(p.Min, p.Max)))
	case "inv_log_uniform":
		return finiteFloat(math.Exp(-within(p.Min, p.Max)))
	case "log_uniform_values":
		return clip(math.Exp(within(math.Log(p.Min), math.Log(p.Max))))
	case "q_log_uniform_values":
		return stepped(p, clipStep(p, math.Exp(within(math.Log(p.Min), math.Log(p.Max)))))
	case "inv_log_uniform_values": // log(1/x) is uniform between log(1/max) and log(1/min)
		return clip(math.Exp(-within(-math.Log(p.Max), -math.Log(p.Min))))
	case "normal":
		return finiteFloat(p.Mu + p.Sigma*d.normal())
	case "q_normal":
		return stepped(p, p.Mu+p.Sigma*d.normal())
	case "log_normal":
		return finiteFloat(math.Exp(p.Mu + p.Sigma*d.normal()))
	case "q_log_normal":
		return stepped(p, math.Exp(p.Mu+p.Sigma*d.normal()))
	}
	return d.pick(p)
}

// pick is one of the values: each as likely, or by the probabilities given.
func (d dice) pick(p wire.Parameter) any {
	switch {
	case len(p.Values) == 0:
		return nil
	case len(p.Probs) != len(p.Values):
		return p.Values[d.below(int64(len(p.Values)))]
	}
	u, last := d.float(), 0
	for i, q := range p.Probs {
		if q > 0 {
			if last = i; u < q {
				break
			}
			u -= q
		}
	}
	return p.Values[last]
}

// stepped rounds x to a multiple of the parameter's step; a whole step gives integers.
func stepped(p wire.Parameter, x float64) any {
	v := x
	if n := math.Round(x / p.Q); !math.IsInf(n, 0) {
		v = finiteFloat(n * p.Q)
	}
	v = finiteFloat(v)
	if p.Q == math.Trunc(p.Q) && math.Abs(v) < 1<<53 {
		return int64(v)
	}
	// 3 * 0.1 is 0.30000000000000004; what is meant is the nearest short number.
	short, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 14, 64), 64)
	if err != nil {
		return v
	}
	return short
}

// finiteFloat keeps what overflows among the numbers that JSON has.
func finiteFloat(x float64) float64 { return min(max(x, -math.MaxFloat64), math.MaxFloat64) }

// clipStep keeps the multiple of the step nearest to x between min and max.
func clipStep(p wire.Parameter, x float64) float64 {
	v := math.Round(x/p.Q) * p.Q
	const slack = 1e-9
	if v > p.Max+slack*p.Q {
		v -= p.Q
	}
	if v < p.Min-slack*p.Q {
		v += p.Q
	}
	return v
}
