// What the gateway gets to read of a node's errors and predictions.
import { publicBody, publicError, publicPrediction, publicReport, withoutDetails } from '../../../edge-node/link/privacy.ts'
import { eventually } from '../../../ops/deadline.ts'
import type { Prediction, Report } from '../../../wire/control.ts'
import { ERRORS, type ErrorCode, GodwitError } from '../../../wire/errors.ts'
import { emptyReport, vm, world } from '../../gateway/fixture.ts'
import { assert, suite, thrown } from '../../support/suite.ts'

const test = suite('edge-node/link/privacy')

const STDERR = 'qemu-system-x86_64: -drive file=/var/lib/godwit/images/d.img: Failed to get "write" lock'

test('paths, addresses and exact figures do not leave; names and sizes do', () => {
  assert.is(withoutDetails('open /var/lib/godwit/images/d.img: no such file'), 'open d.img: no such file')
  assert.is(withoutDetails('dial 10.1.2.3:7443 and [fd00::1]:7443 failed'), 'dial (address) and (address) failed')
  assert.is(withoutDetails('needs 4294967296 bytes, 123456 are free'), 'needs 4300000000 bytes, 120000 are free')
  for (const text of ['web-1 needs 256MiB, 0B are free', 'web-1 is at epoch 7, not 12', 'QEMU 9.2.1 is older than 10.0.2, 3 of 4'])
    assert.is(withoutDetails(text), text)
})

test("what QEMU or the system said never leaves, whatever the code's text was made of", () => {
  const opaque = (Object.keys(ERRORS) as ErrorCode[]).filter(code =>
    /^(QEMU_|INTERNAL|CONFIG_|STORE_|CONNECT|STREAM|MIGRATION_(FAILED|DOUBT|REFUSED))/.test(code),
  )
  for (const code of opaque) {
    const told = publicError(new GodwitError(code, `secret-of-the-node ${STDERR}`, { hint: 'see /srv/secret' }))
    assert.equal([told.code, told.message, told.hint], [code, ERRORS[code].meaning, ERRORS[code].hint])
  }
  assert.is(publicError(new TypeError(STDERR)).message, ERRORS.INTERNAL.meaning)
  assert.is(publicBody({ code: 'QEMU_EXITED', message: STDERR }).message, ERRORS.QEMU_EXITED.meaning)
  assert.match(
    publicError(new GodwitError('PREFLIGHT_FILE_MISSING', 'vmlinuz is not in /srv/images')).message,
    /^vmlinuz is not in images$/,
  )
})

test('a prediction leaves with rounded figures, a report without details in its prose', () => {
  const method = { method: 'live', isPossible: true, totalMs: 93_127.4, downtimeMs: 217, wireBytes: 123_456_789, throttlePercent: 0 }
  const facts = { zeroShare: 0.73218, dirtyBytesPerSecond: 1_234_567 }
  const given = { vm: 'vm-1', target: 'b', methods: [method], recommended: 'live', reason: 'guest rewrites 1234567 bytes', facts }
  const { methods, reason, ...rest } = publicPrediction(given as unknown as Prediction)
  assert.equal(methods[0], { ...method, totalMs: 93_000, downtimeMs: 220, wireBytes: 120_000_000 })
  assert.equal([reason, rest['facts']], ['guest rewrites 1200000 bytes', { zeroShare: 0.73, dirtyBytesPerSecond: 1_200_000 }])
  const report = publicReport({ ...emptyReport('0'.repeat(32)), notes: ['read /srv/x.img'] } as unknown as Report)
  assert.equal([report.notes, report.wireBytes], [['read x.img'], 1])
})

test('over a real link: refusals and results reach the gateway without what stays at the node', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [vm('vm-1')] })
  await w.node('b')
  a.handlers.predict = async () => {
    throw new GodwitError('QEMU_COMMAND', STDERR)
  }
  const refused = await thrown(() => w.api('POST', '/v1/plans', { vm: 'vm-1', to: 'b' }))
  assert.ok(refused instanceof GodwitError && refused.code === 'QEMU_COMMAND' && !refused.message.includes('godwit'), String(refused))
  a.handlers.start = async () => {
    throw new GodwitError('PREFLIGHT_DEVICE', 'tap0 of 10.0.0.7: cannot open /dev/net/tun')
  }
  const first = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  const { error } = await w.until(first.migrationId, ({ outcome }) => outcome !== null)
  assert.equal([error?.code, error?.message], ['PREFLIGHT_DEVICE', 'tap0 of (address): cannot open tun'])
  a.handlers.start = async () => {}
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await eventually(async () => ((await w.until(migrationId, () => true)).state === 'STREAMING' ? true : undefined), {
    ms: 5_000,
    what: 'start',
  })
  a.link.report({ migrationId, side: 'source', outcome: 'failed', error: { code: 'QEMU_EXITED', message: STDERR } })
  const ended = await w.until(migrationId, ({ outcome }) => outcome !== null)
  assert.equal([ended.error?.code, ended.error?.message], ['QEMU_EXITED', ERRORS.QEMU_EXITED.meaning])
})

test.run()
