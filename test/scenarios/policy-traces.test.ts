// The policy comparison on recorded drives. The data stays outside of the project: GODWIT_TRACES names its folder, and
// without it these are skipped.
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { compare, renderReports } from '../../cli/sim/compare.ts'
import { loadSimulation } from '../../cli/sim/load.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('policies on recorded drives', { ms: 120_000 })

const folder = process.env['GODWIT_TRACES']
const skip = folder && existsSync(folder) ? false : 'set GODWIT_TRACES to a folder of drives (docs/operate/policy.md)'
const scenario = fileURLToPath(new URL('../../examples/mobility-traces.yaml', import.meta.url))
/** 4 users, so 32 user hours. */
const HOURS = 8

/** 2019: the prices and the latency policy's TTT were tuned on these. 2020: for the final figure only. */
for (const [what, only] of [
  ['the drives that the policy was tuned on', 'B_2019*'],
  ['drives kept for the final figure', 'B_2020*'],
] as const) {
  test(
    `on ${what}: regret with pre-staging has the least SLO violation, at most 0.8 of the migrations of latency, ping-pong at most 10 %`,
    async () => {
      const reports = compare({ ...(await loadSimulation(scenario, { folder, only })), hours: HOURS })
      console.log(`\n${what} (${only}), ${renderReports(reports)}`)
      const of = (label: string) => reports.find(({ policy }) => policy === label)!
      const regret = of('regret')
      for (const other of reports) {
        if (other !== regret)
          assert.ok(regret.sloViolationPercent < other.sloViolationPercent, `${other.policy} has ${other.sloViolationPercent}`)
      }
      const share = regret.migrationsPerHour / of('latency').migrationsPerHour
      assert.ok(share <= 0.8, `migrations: ${share} of those of latency`)
      assert.ok(regret.pingPongPercent <= 10, `ping-pong ${regret.pingPongPercent} %`)
      assert.ok(regret.prediction!.brier < regret.prediction!.brierOfRate)
    },
    { skip },
  )
}

test.run()
