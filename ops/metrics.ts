// Metrics for Prometheus (the only importer of prom-client). Each registry is separate: nothing is global, so tests and
// parts of one process never share a counter. Label values come from code (codes, directions, engines), never from a
// peer, who could create new series.
import { Counter, Gauge, Histogram, Registry } from 'prom-client'

type Labels<L extends string> = Partial<Record<L, string>>
type CounterHandle<L extends string> = { inc(labels?: Labels<L>, by?: number): void }
type GaugeHandle<L extends string> = { set(value: number, labels?: Labels<L>): void }
type HistogramHandle<L extends string> = { observe(value: number, labels?: Labels<L>): void }

export type Metrics = {
  /** Name without the prefix; ends in `_total`. */
  counter<L extends string = never>(name: string, help: string, labels?: L[]): CounterHandle<L>
  gauge<L extends string = never>(name: string, help: string, labels?: L[]): GaugeHandle<L>
  /** A gauge whose value is computed at each scrape. */
  sampled(name: string, help: string, sample: () => number | Promise<number>): void
  histogram<L extends string = never>(name: string, help: string, buckets: number[], labels?: L[]): HistogramHandle<L>
  /** The text exposition format. */
  expose(): Promise<{ contentType: string; body: string }>
}

/** A registry; the names of all its metrics are `<prefix>_<name>`. */
export function createMetrics(prefix: string): Metrics {
  const registry = new Registry()
  const base = (name: string, help: string) => ({ name: `${prefix}_${name}`, help, registers: [registry] })
  return {
    counter(name, help, labels = []) {
      const counter = new Counter({ ...base(name, help), labelNames: labels })
      if (labels.length === 0) counter.inc(0)
      return { inc: (values, by = 1) => counter.inc(values ?? {}, by) }
    },
    gauge(name, help, labels = []) {
      const gauge = new Gauge({ ...base(name, help), labelNames: labels })
      return { set: (value, values) => gauge.set(values ?? {}, value) }
    },
    sampled(name, help, sample) {
      new Gauge({
        ...base(name, help),
        async collect() {
          this.set(await sample())
        },
      })
    },
    histogram(name, help, buckets, labels = []) {
      const histogram = new Histogram({ ...base(name, help), buckets, labelNames: labels })
      return { observe: (value, values) => histogram.observe(values ?? {}, value) }
    },
    async expose() {
      return { contentType: registry.contentType, body: await registry.metrics() }
    },
  }
}
