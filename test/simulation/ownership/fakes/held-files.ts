// edge-node/vm/held-files.ts in the simulation: VMs without disks.
export const heldFacts = async () => ({ facts: { 'readonly/boot.img': { bytes: 1 } }, seen: [] })
export const namedFiles = async () => []
export const assertNamedUnchanged = async (): Promise<void> => {}
export const assertUnchanged = async (): Promise<void> => {}
