// edge-node/disks/local.ts in the simulation: VMs without local disks.
export const makeLocalDisk = async (): Promise<void> => {}
export const makeSeed = async (): Promise<void> => {}
export const allocatedBytes = async (): Promise<number> => 0
