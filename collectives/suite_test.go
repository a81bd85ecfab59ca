//go:build linux

package collectives

import (
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"strings"
	"time"
	"unsafe"

	"launcher/collectives/plan"
	"launcher/collectives/reduce"
)

// suites are what ranks can be told to run. The text they give must be the same on all
// ranks; differences to the serial reference are errors.
var suites = map[string]func(c *Comm, seed uint64, args []int) (string, error){
	"all":     suiteAll,
	"traffic": suiteTraffic,
	"wait":    suiteWait,
	"call":    suiteCall,
	"repeat":  suiteRepeat,
}

// number is a small integer for element i of a rank's input: sums and products of few
// of them are exact in every type, in any order.
func number(seed uint64, rank, i int, product bool) float64 {
	x := seed*0x9e3779b97f4a7c15 + uint64(rank)*0xbf58476d1ce4e5b9 + uint64(i)*0x94d049bb133111eb
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 32
	if product {
		if rank < 4 && x%3 == 0 {
			return 2
		}
		return 1 - 2*float64(x>>8&1)
	}
	return float64(x%7) - 3
}

func toElem[T Element](f float64) T {
	var z T
	switch p := any(&z).(type) {
	case *float64:
		*p = f
	case *float32:
		*p = float32(f)
	case *Float16:
		*p = ToFloat16(float32(f))
	case *BFloat16:
		*p = ToBFloat16(float32(f))
	case *int32:
		*p = int32(f)
	case *int64:
		*p = int64(f)
	}
	return z
}

// expect is the serial reference: what element i of all ranks' inputs combines to.
func expect[T Element](seed uint64, world, i int, op Op) T {
	acc := number(seed, 0, i, op == Product)
	for r := 1; r < world; r++ {
		v := number(seed, r, i, op == Product)
		switch op {
		case Sum, Mean:
			acc += v
		case Product:
			acc *= v
		case Min:
			acc = min(acc, v)
		case Max:
			acc = max(acc, v)
		}
	}
	if op == Mean {
		if typeOf[T]() == TypeFloat64 {
			acc /= float64(world)
		} else {
			acc = float64(float32(acc) / float32(world))
		}
	}
	return toElem[T](acc)
}

// buffer gives n elements, in the arena or not; with mixed only odd ranks are in it.
func buffer[T Element](c *Comm, n int, where int) []T {
	if where == inArena || where == mixed && c.Rank()%2 == 1 {
		b, err := Empty[T](c, n)
		if err != nil {
			panic(err)
		}
		return b
	}
	return make([]T, n)
}

const (
	private = iota
	inArena
	mixed
)

func fill[T Element](b []T, seed uint64, rank int, op Op) {
	for i := range b {
		b[i] = toElem[T](number(seed, rank, i, op == Product))
	}
}

func compare[T Element](got []T, offset int, want func(i int) T) error {
	for i, v := range got {
		if w := want(offset + i); v != w {
			return fmt.Errorf("element %d is %v, want %v", offset+i, v, w)
		}
	}
	return nil
}

func hash[T Element](b []T) uint32 {
	if len(b) == 0 {
		return 0
	}
	return crc32.ChecksumIEEE(unsafe.Slice((*byte)(unsafe.Pointer(&b[0])), len(b)*int(unsafe.Sizeof(b[0]))))
}

func each[T Element](c *Comm, seed uint64, out *strings.Builder, sizes []int, ops []Op) error {
	typ := typeOf[T]()
	for k, n := range sizes {
		where := (k + int(seed)) % 3
		for _, op := range ops {
			if reduce.Check(typ, op) != nil {
				if err := AllReduce(c, make([]T, n), op); err == nil {
					return fmt.Errorf("%s %s is not refused", op, typ)
				}
				continue
			}
			seed++
			name := fmt.Sprintf("%s %s of %d, buffers %d", op, typ, n, where)
			b := buffer[T](c, n, where)
			fill(b, seed, c.Rank(), op)
			if err := AllReduce(c, b, op); err != nil {
				return fmt.Errorf("all-reduce %s: %w", name, err)
			}
			if err := compare(b, 0, func(i int) T { return expect[T](seed, c.Size(), i, op) }); err != nil {
				return fmt.Errorf("all-reduce %s: %w", name, err)
			}
			fmt.Fprintf(out, "%s %x\n", name, hash(b))

			fill(b, seed, c.Rank(), op)
			from, to := Part(n, c.Size(), c.Rank())
			part := buffer[T](c, to-from, (where+k)%3)
			if err := ReduceScatter(c, part, b, op); err != nil {
				return fmt.Errorf("reduce-scatter %s: %w", name, err)
			}
			if err := compare(part, from, func(i int) T { return expect[T](seed, c.Size(), i, op) }); err != nil {
				return fmt.Errorf("reduce-scatter %s: %w", name, err)
			}

			root := int(seed) % c.Size()
			fill(b, seed, c.Rank(), op)
			if err := Reduce(c, b, op, root); err != nil {
				return fmt.Errorf("reduce %s to %d: %w", name, root, err)
			}
			want := func(i int) T { return toElem[T](number(seed, c.Rank(), i, op == Product)) }
			if c.Rank() == root {
				want = func(i int) T { return expect[T](seed, c.Size(), i, op) }
			}
			if err := compare(b, 0, want); err != nil {
				return fmt.Errorf("reduce %s to %d: %w", name, root, err)
			}
			Free(c, part[:len(part):cap(part)])
			Free(c, b)
		}
		b := buffer[T](c, n, where)
		root := (n + k) % c.Size()
		fill(b, seed, c.Rank(), Sum)
		if err := Broadcast(c, b, root); err != nil {
			return fmt.Errorf("broadcast of %d %s from %d: %w", n, typ, root, err)
		}
		if err := compare(b, 0, func(i int) T { return toElem[T](number(seed, root, i, false)) }); err != nil {
			return fmt.Errorf("broadcast of %d %s from %d: %w", n, typ, root, err)
		}
		from, to := Part(n, c.Size(), c.Rank())
		clear(b)
		in := b[from:to] // in place
		if k%2 == 0 {
			in = buffer[T](c, to-from, (where+1)%3)
		}
		for i := range in {
			in[i] = toElem[T](number(seed, 99, from+i, false))
		}
		if err := AllGather(c, b, in); err != nil {
			return fmt.Errorf("all-gather of %d %s: %w", n, typ, err)
		}
		if err := compare(b, 0, func(i int) T { return toElem[T](number(seed, 99, i, false)) }); err != nil {
			return fmt.Errorf("all-gather of %d %s: %w", n, typ, err)
		}
		if err := c.Barrier(); err != nil {
			return err
		}
	}
	return nil
}

// suiteAll runs everything at several sizes. args[0] is one more size; with args[1] > 0
// only float32 and two of the other types are done, which of them it says.
func suiteAll(c *Comm, seed uint64, args []int) (string, error) {
	var out strings.Builder
	w := c.Size()
	sizes := []int{0, 1, w, 65, 5003}
	if len(args) > 0 && args[0] > 0 {
		sizes = append(sizes, args[0])
	}
	for i, f := range []func() error{
		func() error { return each[float32](c, seed, &out, sizes, reduce.Ops) },
		func() error { return each[float64](c, seed, &out, sizes, reduce.Ops) },
		func() error { return each[Float16](c, seed, &out, sizes[1:5], reduce.Ops) },
		func() error { return each[BFloat16](c, seed, &out, sizes[1:5], reduce.Ops) },
		func() error { return each[int32](c, seed, &out, sizes[1:5], reduce.Ops) },
		func() error { return each[int64](c, seed, &out, sizes[1:5], reduce.Ops) },
		func() error { return rough(c, seed, &out, 37) },
		func() error { return rough(c, seed, &out, 9001) },
	} {
		if len(args) > 1 && i > 0 && i < 6 && (i+args[1])%5 > 1 {
			continue
		}
		if err := f(); err != nil {
			return "", err
		}
	}
	return out.String(), nil
}

// rough sums numbers whose sum depends on the order: all ranks must have the same bits,
// and be near the sum in float64.
func rough(c *Comm, seed uint64, out *strings.Builder, n int) error {
	at := func(rank, i int) float32 {
		x := float64(number(seed, rank, i, false)*1.1) + 0.01*float64(rank) // the conversion keeps it from being fused
		return float32(x * math.Pow10((rank+i)%7))
	}
	b := make([]float32, n)
	for i := range b {
		b[i] = at(c.Rank(), i)
	}
	if err := AllReduce(c, b, Sum); err != nil {
		return err
	}
	for i, v := range b {
		sum, scale := 0.0, 0.0
		for r := range c.Size() {
			sum += float64(at(r, i))
			scale += math.Abs(float64(at(r, i)))
		}
		if math.Abs(float64(v)-sum) > scale*float64(c.Size())*6e-8 {
			return fmt.Errorf("sum of rough numbers, element %d of %d: %g, want %g", i, n, v, sum)
		}
	}
	fmt.Fprintf(out, "rough %d %x\n", n, hash(b))
	return nil
}

// suiteTraffic does one operation, a few times: code, elements of float32, repeats.
func suiteTraffic(c *Comm, seed uint64, args []int) (string, error) {
	code, n := plan.Code(args[0]), args[1]
	b := make([]float32, n)
	for range args[2] {
		fill(b, seed, c.Rank(), Sum)
		var err error
		from, to := Part(n, c.Size(), c.Rank())
		switch code {
		case plan.AllReduce:
			if err = AllReduce(c, b, Sum); err == nil {
				err = compare(b[:100], 0, func(i int) float32 { return expect[float32](seed, c.Size(), i, Sum) })
			}
		case plan.ReduceScatter:
			err = ReduceScatter(c, b[from:to], b, Sum)
		case plan.AllGather:
			err = AllGather(c, b, b[from:to])
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

// suiteWait computes for args[0] milliseconds on rank args[1], the others wait for it.
func suiteWait(c *Comm, seed uint64, args []int) (string, error) {
	if c.Rank() == args[1] {
		for end := time.Now().Add(time.Duration(args[0]) * time.Millisecond); time.Now().Before(end); {
			_ = math.Sqrt(float64(seed))
		}
	}
	return "", AllReduce(c, make([]float32, 10), Sum)
}

// suiteCall: every rank sums args[0] elements; rank args[1], if there is one, does as
// args[2] says instead. Errors are part of the text, for they must agree too.
func suiteCall(c *Comm, seed uint64, args []int) (string, error) {
	b := make([]float32, args[0])
	if c.Rank() == args[1] {
		switch args[2] {
		case 1: // another length
			return "", AllReduce(c, b[:len(b)-1], Sum)
		case 2: // another operation
			return "", c.Barrier()
		case 3: // does not call
			return "", nil
		case 4: // exits well, without leaving
			os.Exit(0)
		case 5: // leaves
			return "", c.Close()
		case 6: // another type of the same size
			return "", AllReduce(c, make([]int32, len(b)), Sum)
		}
	}
	return "", AllReduce(c, b, Sum)
}

// suiteRepeat sums until an error, at most args[1] times, args[0] elements.
func suiteRepeat(c *Comm, seed uint64, args []int) (string, error) {
	b := make([]float32, args[0])
	for range args[1] {
		if err := AllReduce(c, b, Sum); err != nil {
			return "", err
		}
	}
	return "", nil
}
