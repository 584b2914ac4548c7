package sync

import "github.com/firsthop/firsthop/runtime/services"

// countRanges takes a Service's ports from what they were to what they are, and says when the first has source ranges, or
// none has any more.
func (l *Loop) countRanges(before, after []services.Port) {
	had := l.ranges > 0
	for i := range after {
		if len(after[i].SourceRanges) > 0 {
			l.ranges++
		}
	}
	for i := range before {
		if len(before[i].SourceRanges) > 0 {
			l.ranges--
		}
	}
	if has := l.ranges > 0; has != had {
		l.publish(SourceRanges(has))
	}
}
