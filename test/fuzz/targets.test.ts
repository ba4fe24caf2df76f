import { readCorpus } from '../../fuzz/corpus.ts'
import { fuzz } from '../../fuzz/engine.ts'
import { TARGETS } from '../../fuzz/targets.ts'
import { assert, suite } from '../support/suite.ts'

// A short form of `npm run fuzz`: fixed seed, fixed number of executions, no coverage, so that it is the same every
// time.
const test = suite('fuzzing', { ms: 120_000 })
const SEED = 1

for (const target of TARGETS) {
  test(`${target.name}: whatever comes, only known codes leave (${target.testRuns} executions)`, async () => {
    const report = await fuzz({ target, seed: SEED, corpus: readCorpus(target.name) }, { executions: target.testRuns })
    const found = report.findings.map(
      ({ problem, input, name }) =>
        `${problem}\n    ${name ?? `npm run fuzz -- ${target.name} --replay ${Buffer.from(input).toString('hex')}`}`,
    )
    assert.equal(found, [])
    assert.ok(report.executions >= target.testRuns)
    assert.ok((report.outcomes['ok'] ?? 0) > 0, 'no input at all is good: the target is out of date')
    assert.ok(Object.keys(report.outcomes).length > 1, 'no input at all is bad')
  })
}

test.run()
