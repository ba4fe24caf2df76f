import { factsOf, newEntry, runsHere } from '../../../edge-node/registry/entry.ts'
import type { VmRecord } from '../../../edge-node/registry/records.ts'
import type { RunningVm } from '../../../edge-node/vm/machine.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { assert, suite } from '../../support/suite.ts'
import { echoSpec } from '../vm/echo-guest.ts'

const test = suite('edge-node/registry/entry')

const record: VmRecord = { version: 1, state: 'running', epoch: 3, resumePending: false, doubt: false }
const qemu = (alive: boolean) => ({ alive, pid: 7, accelerator: 'tcg' }) as RunningVm
const entry = (change: Partial<VmRecord> = {}, vm: RunningVm | undefined = qemu(true)) =>
  newEntry(parseSpec(echoSpec('vm-1')), { ...record, ...change }, vm)

test('a VM is listed by its record, and by its guest where the record lets it run', () => {
  const one = entry()
  assert.equal(factsOf(one), {
    ...{ name: 'vm-1', state: 'running', epoch: 3, memoryBytes: 32 * 1024 * 1024, vcpus: 1 },
    ...{ accelerator: 'tcg', pid: 7, doubt: false, failure: undefined },
  })
  const stateOf = (state: VmRecord['state'], guest: typeof one.guest) => factsOf({ ...entry({ state }), guest }).state
  assert.is(stateOf('running', 'suspended'), 'suspended')
  for (const guest of ['paused', 'off', 'panicked', 'broken'] as const) assert.is(stateOf('running', guest), 'paused')
  for (const state of ['stopped', 'paused', 'migrating', 'incoming', 'failed'] as const) assert.is(stateOf(state, 'suspended'), state)
})

test('a guest runs here only in a QEMU that is alive, at the site that owns the VM for certain', () => {
  assert.is(runsHere(entry()), true)
  assert.is(runsHere(entry({ state: 'migrating' })), true)
  assert.is(runsHere(newEntry(entry().spec, record)), false, 'no QEMU')
  assert.is(runsHere(entry({}, qemu(false))), false)
  assert.is(runsHere(entry({ doubt: true })), false)
  assert.is(runsHere({ ...entry(), guest: 'paused' }), false)
  for (const state of ['stopped', 'paused', 'incoming', 'failed'] as const) assert.is(runsHere(entry({ state })), false)
})

test.run()
