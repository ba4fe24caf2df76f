// VMs that must stay where they are. Enters: pin and unpin (MQTT commands, admin API). Leaves: whether a VM is pinned.
// Always holds: a pin is on disk before it is acknowledged, and holds for every way to start a migration; a running one
// it does not stop.
import type { Clock } from '../../ops/clock.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Records, StoredPin } from '../store/records.ts'

const PINS_MAX = 10_000

export type Pins = {
  has(vm: string): boolean
  /** `by`: who wanted it, for the record. LIMIT_EXCEEDED, STORE_FAILED. */
  set(vm: string, pinned: boolean, by: string): Promise<void>
  list(): StoredPin[]
}

export async function createPins(records: Records, clock: Clock, onChange: (vm: string, pinned: boolean) => void): Promise<Pins> {
  const pins = new Map<string, StoredPin>()
  for await (const pin of records.pins()) pins.set(pin.vm, pin)
  return {
    has: vm => pins.has(vm),
    async set(vm, pinned, by) {
      const pin: StoredPin = { vm, by, at: clock.now() }
      if (pinned && !pins.has(vm) && pins.size >= PINS_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${PINS_MAX} VMs are pinned`)
      await (pinned ? records.savePin(pin) : records.dropPin(vm))
      if (pinned) pins.set(vm, pin)
      else pins.delete(vm)
      onChange(vm, pinned)
    },
    list: () => [...pins.values()],
  }
}
