//go:build linux

package launcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// What is allowed alone is in sum too, or refused with an error; no frame is too long.

var (
	texts = Func(func(_ context.Context, n int) ([]string, error) {
		v := make([]string, n)
		for i := range v {
			v[i] = strings.Repeat(fmt.Sprint(i%10), sdk.InlineMax-100)
		}
		return v, nil
	}, Name("texts"))
	lengths = Func(func(_ context.Context, v []string) (n int, _ error) {
		for _, s := range v {
			n += len(s)
		}
		return n, nil
	}, Name("lengths"))
	wordy = Func(func(_ context.Context, n int) ([]int, error) {
		return nil, errors.New(strings.Repeat("ü", n))
	}, Name("wordy"))
)

func TestManySmallValues(t *testing.T) {
	n := startFake(t)
	ctx := bounded(t)
	const k = 2*sdk.InlineSum/sdk.InlineMax + 10
	refs := SubmitN(ctx, texts, k, k)
	v, err := Get(ctx, refs...)
	if err != nil || len(v[k-1]) != sdk.InlineMax-100 {
		t.Fatal(err)
	}
	n.with(func() {
		inline, shared := 0, 0
		for _, v := range n.objects {
			switch v[0] {
			case sdk.Inline:
				inline += len(v)
			case sdk.Shared:
				shared++
			}
		}
		if inline > sdk.InlineSum+32*k || shared < k/2-20 || n.longest > sdk.InlineSum+48*k {
			t.Errorf("%d bytes of inline results, %d shared; the longest frame has %d bytes", inline, shared, n.longest)
		}
		n.apart = true
	})
	got, err := lengths.SubmitArg(ctx, Gather(refs)).Get(ctx)
	if err != nil || got != k*(sdk.InlineMax-100) {
		t.Errorf("arguments that were given apart: %d, %v", got, err)
	}
}

// TestLater: values that the agent has only announced are asked for again.
func TestLater(t *testing.T) {
	n := startFake(t)
	ctx := bounded(t)
	var refs []Ref[int]
	for i := range 20 {
		refs = append(refs, square.Submit(ctx, i))
	}
	for {
		ready, rest := Wait(ctx, refs, len(refs))
		if len(rest) == 0 && len(ready) == 20 {
			break
		}
	}
	n.with(func() { n.later = 30 })
	v, err := Get(ctx, refs...)
	if err != nil || v[19] != 361 {
		t.Fatal(v, err)
	}
}

func TestTooLong(t *testing.T) {
	startFake(t)
	ctx := bounded(t)
	one, err := Put(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	many := make([]Ref[int], sdk.BodyMax/16)
	for i := range many {
		many[i] = one
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "allowed") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = Put(ctx, many)
	refused("a value with very many references", err)
	_, err = sumRefs.Submit(ctx, many).Get(ctx)
	refused("an argument with very many references", err)
	_, err = total.SubmitArg(ctx, Gather(many[:sdk.ManyMax+1])).Get(ctx)
	refused("very many arguments", err)
	_, err = SubmitN(ctx, texts, sdk.ManyMax+1, 1)[0].Get(ctx)
	refused("very many results", err)
	_, err = hi.Submit(ctx, Name(strings.Repeat("n", sdk.OptionsMax+1))).Get(ctx)
	refused("a very long option", err)
	_, err = SubmitN(ctx, wordy, 3, sdk.BodyMax)[1].Get(ctx)
	if err == nil || len(err.Error()) > 200<<10 || !strings.Contains(err.Error(), "[...]") {
		t.Errorf("a very long error: %.100v", err)
	}
	if v, err := square.Submit(ctx, 3).Get(ctx); v != 9 || err != nil {
		t.Errorf("afterwards: %d, %v", v, err)
	}
}

var (
	sumRefs = Func(func(_ context.Context, v []Ref[int]) (int, error) { return len(v), nil }, Name("sumRefs"))
	total   = Func(func(_ context.Context, v []int) (int, error) { return len(v), nil }, Name("total"))
)

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
