// kill -9 of an agent the moment each ownership state is durable, then its restart: the VM ends up running exactly once, healed without a person.
// The oracle: the guest's own audit, QEMU processes that run the guest (by `query-status` through both agents), and the gateway's record.
// Numbers are those of the fault catalogue in docs/OWNERSHIP.md.
import { eventually } from '../../ops/deadline.ts'
import type { VmFacts } from '../../wire/control.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e: an agent dies and comes back', { ms: 90_000 })
const skip = labMissing()
const VM = 'vm-1'

type Case = { number: string; what: string; crashAt: string; runsAt: 'a' | 'b'; epoch: number }

// Source `a`, target `b`; the VM begins at epoch 1.
const CASES: Case[] = [
  { number: '1', what: 'the source while it streams', crashAt: 'source:STREAMING', runsAt: 'a', epoch: 1 },
  { number: '28', what: 'the source just before it relinquishes', crashAt: 'source:QUIESCED', runsAt: 'a', epoch: 1 },
  { number: '31', what: 'the source after RELINQUISHED, before its grant', crashAt: 'source:RELINQUISHED', runsAt: 'b', epoch: 2 },
  { number: '31b', what: 'the source when all is over but its own clearing up', crashAt: 'source:RETIRED', runsAt: 'b', epoch: 2 },
  { number: '3', what: 'the target before LOADED', crashAt: 'target:RECEIVING', runsAt: 'a', epoch: 1 },
  { number: '35', what: 'the target in LOADED', crashAt: 'target:LOADED', runsAt: 'a', epoch: 1 },
  {
    number: '36',
    what: 'the target in GRANTED: it has nothing any more, and the source takes the VM back',
    crashAt: 'target:GRANTED',
    runsAt: 'a',
    epoch: 3,
  },
  { number: '38', what: 'the target after RESUMING, before the guest runs', crashAt: 'target:RESUMING', runsAt: 'b', epoch: 2 },
  { number: '38b', what: 'the target when the guest runs', crashAt: 'target:RUNNING', runsAt: 'b', epoch: 2 },
]

const vmAt = async (lab: Lab, site: string): Promise<VmFacts | undefined> =>
  (await lab.site(site).api<{ vms: VmFacts[] }>('GET', '/v1/vms')).vms.find(({ name }) => name === VM)

for (const { number, what, crashAt, runsAt, epoch } of CASES) {
  test(
    `fault ${number}: kill -9 of ${what}`,
    async () => {
      const [dying, other] = crashAt.startsWith('source') ? (['a', 'b'] as const) : (['b', 'a'] as const)
      await using lab = await openLab({
        engine: 'quic',
        sites: [
          ['a', { isProcess: true, isStopped: true }],
          ['b', { isProcess: true, isStopped: true }],
        ],
      })
      lab.site(dying).crashAt = crashAt
      await Promise.all([lab.site('a').start(), lab.site('b').start()])
      using guest = await bootGuest(lab, 'a', { name: VM, memoryMiB: 96, fillBytes: 16 * 1024 * 1024, dirtyBytesPerSecond: 1024 * 1024 })
      const migrationId = await lab.begin({ vm: VM, to: 'b' })
      await lab.site(dying).died()
      lab.site(dying).crashAt = undefined
      await lab.site(dying).start()

      const healed = async () => {
        const [here, there] = await Promise.all([vmAt(lab, runsAt), vmAt(lab, runsAt === 'a' ? 'b' : 'a')])
        return here?.state === 'running' && there === undefined ? here : undefined
      }
      const vm = await eventually(healed, { ms: 40_000, what: `${VM} running at ${runsAt} alone`, everyMs: 100 })
      assert.is(vm.epoch, epoch)
      const record = await lab.until(migrationId, undefined, 30_000)
      assert.is(record.outcome, runsAt === 'b' ? 'completed' : 'failed', JSON.stringify(record.error))
      await guest.watchAnew()
      const audit = await guest.audit()
      assert.is(audit.bad, 0)
      assert.ok(audit.versions > 0)
      assert.is(await vmAt(lab, other === runsAt ? dying : other), undefined)
    },
    { skip },
  )
}

test.run()
