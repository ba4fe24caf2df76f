// Another enrolled site claims a VM at a huge epoch: its users go on reaching the real guest, in an agent's own
// process, and it still moves.
import { createUser } from '../../cli/demo/user.ts'
import { connectLink } from '../../edge-node/link/link.ts'
import { eventually } from '../../ops/deadline.ts'
import type { ServiceView, VmView } from '../../wire/admin.ts'
import { silentLog } from '../../wire/log.ts'
import { identityOf } from '../gateway/fixture.ts'
import { GATEWAY_ID, labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/homes', { ms: 120_000 })
const skip = labMissing()

const SERVICE = { vm: 'vm-1', service: 'http', listen: { host: '127.0.0.1', port: 0 } }
const SPEC = { nics: [{ type: 'user' }], services: [{ name: 'http', port: 80 }] }

test(
  'users of a VM stay with its owner, whatever epoch another enrolled site claims, and follow it when it moves',
  async () => {
    const isProcess = true
    await using lab = await openLab({
      engine: 'quic',
      services: [SERVICE],
      sites: [
        ['a', { isProcess }],
        ['b', { isProcess }],
      ],
    })
    using guest = await bootGuest(lab, 'a', { spec: SPEC })
    const viewOf = async () => (await lab.api<{ services: ServiceView[] }>('GET', '/v1/services')).services[0]!
    await eventually(async () => ((await viewOf()).site === 'a' ? true : undefined), { ms: 30_000, what: 'the service at a' })

    let asked = 0
    const { engine, port } = lab.door
    const claim = { name: 'vm-1', state: 'running' as const, epoch: 2 ** 40, memoryBytes: 1 << 27, vcpus: 1, services: ['http'] }
    const evil = connectLink({
      dial: async ({ signal }) => ({
        connection: await engine.connect({ host: '127.0.0.1', port, signal }),
        selection: { engine: engine.name, tried: [] },
      }),
      ...{ identity: identityOf(lab.root, 'site', 'evil'), rootPublic: lab.root.signPublic, site: 'evil', gatewayId: GATEWAY_ID },
      ...{ version: 'hostile', log: silentLog, onRelayStream: () => {} },
      describe: async () => ({
        host: { accelerators: [], memoryFreeBytes: 1e9, diskFreeBytes: 1e9, vcpus: 1 },
        vms: [claim],
        migrations: [],
      }),
      handlers: { prepare: async () => {}, start: async () => {}, cancel: async () => {} },
      onServiceStream: (_, frames) => {
        asked += 1
        frames.stream.reset('read')
      },
    })
    try {
      await evil.whenOnline({ timeoutMs: 20_000 })
      const claims = async () => (await lab.api<{ vms: VmView[] }>('GET', '/v1/vms')).vms.map(({ site, isHome }) => `${site} ${isHome}`)
      await eventually(async () => ((await claims()).includes('evil false') ? true : undefined), { ms: 30_000, what: 'the claim' })

      const user = createUser({ ...(await viewOf()).listen, everyMs: 250, deadlineMs: 60_000, now: () => performance.now() })
      const answered = () => user.requests.filter(({ answeredMs }) => answeredMs !== undefined).length
      await eventually(() => (answered() > 5 ? true : undefined), { ms: 60_000, what: "the guest's answers" })
      const { outcome } = await lab.migrate({ vm: 'vm-1', to: 'b' })
      assert.is(outcome, 'completed', lab.logTail())
      const before = answered()
      await eventually(() => (answered() > before + 5 ? true : undefined), { ms: 60_000, what: 'answers from b' })
      await user.stop()
      assert.equal([(await viewOf()).site, asked, user.wrong], ['b', 0, []])
      await guest.observer.next('beat', 5_000)
      assert.equal((await claims()).toSorted(), ['b true', 'evil false'])
    } finally {
      await evil.close()
    }
  },
  { skip, ms: 200_000 },
)

test.run()
