//go:build race

package agent

import "time"

// slack is what the race detector costs on top of a promised time.
const slack = 10 * time.Second
