//go:build !race

package agent

import "time"

// slack is what a busy machine may cost on top of a promised time.
const slack = time.Second
