// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// A contract for tests with the functions of a KMS contract that are read, and
/// what it takes to make them answer, revert and misbehave. Not for use on a
/// chain: anyone may set anything.
contract Authority {
    struct AppBootInfo {
        address appId;
        bytes32 composeHash;
        address instanceId;
        bytes32 deviceId;
        bytes32 mrAggregated;
        bytes32 mrSystem;
        bytes32 osImageHash;
        string tcbStatus;
        string[] advisoryIds;
    }

    string public gatewayAppId;
    address public appImplementation;
    mapping(address => bool) public registeredApps;
    mapping(address => mapping(bytes32 => bool)) public composeHashes;
    mapping(bytes32 => bool) public kmsAllowedAggregatedMrs;
    mapping(bytes32 => bool) public kmsAllowedDeviceIds;
    mapping(bytes32 => bool) public allowedOsImages;
    string public failure;
    string public denial;

    function setGatewayAppId(string calldata id) external { gatewayAppId = id; }
    function setAppImplementation(address a) external { appImplementation = a; }
    function setOsImage(bytes32 hash, bool on) external { allowedOsImages[hash] = on; }
    function setKms(bytes32 mrAggregated, bytes32 deviceId, bool on) external {
        kmsAllowedAggregatedMrs[mrAggregated] = on;
        kmsAllowedDeviceIds[deviceId] = on;
    }
    function setApp(address app, bytes32 composeHash, bool on) external {
        registeredApps[app] = on;
        composeHashes[app][composeHash] = on;
    }
    /// Makes every decision revert with this text; empty ends it.
    function setFailure(string calldata text) external { failure = text; }
    /// Makes every decision a denial with this text; empty ends it.
    function setDenial(string calldata text) external { denial = text; }

    function isAppAllowed(AppBootInfo calldata b) external view returns (bool isAllowed, string memory reason) {
        (isAllowed, reason) = common(b);
        if (!isAllowed) return (false, reason);
        if (!registeredApps[b.appId]) return (false, "App not registered");
        if (!composeHashes[b.appId][b.composeHash]) return (false, "Compose hash not allowed");
        return (true, "");
    }

    function isKmsAllowed(AppBootInfo calldata b) external view returns (bool isAllowed, string memory reason) {
        if (!same(b.tcbStatus, "UpToDate")) return (false, "TCB status is not up to date");
        (isAllowed, reason) = common(b);
        if (!isAllowed) return (false, reason);
        if (!kmsAllowedAggregatedMrs[b.mrAggregated]) return (false, "Aggregated MR not allowed");
        if (!kmsAllowedDeviceIds[b.deviceId]) return (false, "KMS is not allowed to boot on this device");
        return (true, "");
    }

    function common(AppBootInfo calldata b) private view returns (bool, string memory) {
        require(bytes(failure).length == 0, failure);
        if (bytes(denial).length != 0) return (false, denial);
        if (!allowedOsImages[b.osImageHash]) return (false, "OS image is not allowed");
        return (true, "");
    }

    /// Gives back what was understood of the boot information, for tests of its
    /// encoding: the hash of every member in order.
    function digest(AppBootInfo calldata b) external pure returns (bytes32) {
        bytes memory advisories;
        for (uint256 i = 0; i < b.advisoryIds.length; i++) {
            advisories = abi.encodePacked(advisories, b.advisoryIds[i], ";");
        }
        return keccak256(abi.encodePacked(
            b.appId, b.composeHash, b.instanceId, b.deviceId, b.mrAggregated,
            b.mrSystem, b.osImageHash, b.tcbStatus, ";", advisories));
    }

    function same(string calldata a, string memory b) private pure returns (bool) {
        return keccak256(bytes(a)) == keccak256(bytes(b));
    }
}
