package sync

import "github.com/firsthop/firsthop/runtime/services"

// countRanges takes a Service's ports from what they were to what they are, and says when the first has source ranges for
// clients inside the cluster, or none has any more.
func (l *Loop) countRanges(before, after []services.Port) {
	had := l.ranges > 0
	for i := range after {
		if after[i].LimitsInside() {
			l.ranges++
		}
	}
	for i := range before {
		if before[i].LimitsInside() {
			l.ranges--
		}
	}
	if has := l.ranges > 0; has != had {
		l.publish(SourceRanges(has))
	}
}
