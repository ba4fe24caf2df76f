// The metrics that gateway and nodes define, read from their source. Enters: the project's files. Leaves: full names
// with type, labels and help.
// Always holds: all are found, or the reader fails: each call of a metrics object is one of the forms below.
import { projectFiles, withoutComments } from './source-tree.ts'

type MetricFacts = { type: 'counter' | 'gauge' | 'histogram'; labels: string[]; help: string; path: string }

const DEFINITION =
  /\bmetrics\.(counter|gauge|sampled|histogram)\(\s*'([a-z0-9_]+)',\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"),?\s*([^)]*)/g

export function definedMetrics(): Map<string, MetricFacts> {
  const found = new Map<string, MetricFacts>()
  for (const { path, text } of projectFiles()) {
    const process = /^(gateway|edge-node)\/.*\.ts$/.exec(path)?.[1]
    if (!process) continue
    const code = withoutComments(text)
    const definitions = [...code.matchAll(DEFINITION)]
    const calls = [...code.matchAll(/\bmetrics\.(counter|gauge|sampled|histogram)\(/g)]
    if (calls.length !== definitions.length) throw new Error(`${path}: a metric that test/support/metrics.ts cannot read`)
    for (const [, kind = '', name = '', single, double, rest = ''] of definitions) {
      const labels = kind === 'counter' || kind === 'gauge' ? [...rest.matchAll(/'(\w+)'/g)].map(([, label]) => label!) : []
      const type = kind === 'sampled' ? 'gauge' : (kind as MetricFacts['type'])
      found.set(`godwit_${process === 'gateway' ? 'gateway' : 'node'}_${name}`, { type, labels, help: single ?? double ?? '', path })
    }
  }
  return found
}
